import { Command } from 'commander';
import { expand } from '../../streams/expand.js';
import { compressOptions, engine, force, json, shardSize, threads } from './options.js';
import { runAndPrint } from './run.js';

export function expandCommand(): Command {
  return new Command('expand')
    .description('turn a native MoBE checkpoint back into standard weights')
    .argument('<native>', 'folder of a native MoBE checkpoint')
    .argument('<out>', 'folder to write; must be new or empty')
    .addOption(shardSize())
    .addOption(engine())
    .addOption(threads())
    .addOption(force())
    .addOption(json())
    .action((native: string, out: string, flags) =>
      runAndPrint(out, flags, (run) => expand(native, out, compressOptions(flags), run)),
    );
}
