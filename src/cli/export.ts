import type { Command } from 'commander';
import { format } from './factorisation-options.js';
import {
  allowLarger,
  compressOptions,
  engine,
  force,
  json,
  keepQuantized,
  MODEL,
  maxError,
  OUT,
  report,
  shardSize,
  threads,
} from './options.js';
import { ca, cache, tokenFile } from './peers.js';

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .argument('<factors>', 'folder of the factor files')
    .argument(...OUT)
    .addOption(format())
    .addOption(shardSize())
    .addOption(keepQuantized())
    .addOption(maxError())
    .addOption(engine())
    .addOption(threads())
    .addOption(report())
    .addOption(allowLarger())
    .addOption(force())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .action(async (model: string, factors: string, out: string, flags) => {
      const { exportFactors } = await import('../../streams/operations/export.js');
      const { runAndPrint } = await import('./run.js');
      await runAndPrint(out, flags, (run) => exportFactors(model, factors, out, compressOptions(flags), run));
    });
}
