import { Command } from 'commander';
import { exportFactors } from '../../streams/export.js';
import { compressOptions, engine, force, format, json, keepQuantized, MODEL, shardSize, threads } from './options.js';
import { runAndPrint } from './run.js';

export function exportCommand(): Command {
  return new Command('export')
    .description('write a checkpoint from a model and the factor files of "mobe fit"')
    .argument(...MODEL)
    .argument('<factors>', 'folder of the factor files')
    .argument('<out>', 'folder to write; must be new or empty')
    .addOption(format())
    .addOption(shardSize())
    .addOption(keepQuantized())
    .addOption(engine())
    .addOption(threads())
    .addOption(force())
    .addOption(json())
    .action((model: string, factors: string, out: string, flags) =>
      runAndPrint(out, flags, (run) => exportFactors(model, factors, out, compressOptions(flags), run)),
    );
}
