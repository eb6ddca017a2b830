import { Command } from 'commander';
import { exportFactors } from '../../streams/operations/export.js';
import {
  compressOptions,
  engine,
  force,
  format,
  json,
  keepQuantized,
  MODEL,
  maxError,
  report,
  shardSize,
  threads,
} from './options.js';
import { ca, tokenFile } from './peers.js';
import { runAndPrint } from './run.js';

export function exportCommand(): Command {
  return new Command('export')
    .description('write a checkpoint from a model and the factor files of "mobe fit"')
    .argument(...MODEL)
    .argument('<factors>', 'folder of the factor files')
    .argument('<out>', 'folder to write, new or empty; or ws://host:port/ of "mobe receive", or "-" for a pipe')
    .addOption(format())
    .addOption(shardSize())
    .addOption(keepQuantized())
    .addOption(maxError())
    .addOption(engine())
    .addOption(threads())
    .addOption(report())
    .addOption(force())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(json())
    .action((model: string, factors: string, out: string, flags) =>
      runAndPrint(out, flags, (run) => exportFactors(model, factors, out, compressOptions(flags), run)),
    );
}
