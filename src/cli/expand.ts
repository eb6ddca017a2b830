import type { Command } from 'commander';
import { compressOptions, engine, force, json, OUT, shardSize, threads } from './options.js';
import { ca, cache, tokenFile } from './peers.js';

export function define(command: Command): void {
  command
    .argument('<native>', 'folder of a native MoBE checkpoint')
    .argument(...OUT)
    .addOption(shardSize())
    .addOption(engine())
    .addOption(threads())
    .addOption(force())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .action(async (native: string, out: string, flags) => {
      const { expand } = await import('../../streams/operations/expand.js');
      const { runAndPrint } = await import('./run.js');
      await runAndPrint(out, flags, (run) => expand(native, out, compressOptions(flags), run));
    });
}
