import { type Command, Option } from 'commander';
import type { ImportOptions } from '../../streams/operations/import.js';
import { FLOAT_NAMES } from '../checkpoint/factor-dtype.js';
import { REFERENCE_ACTIVATIONS } from '../methods/mobe/problem.js';
import { compressOptions, engine, force, json, MODEL, threads } from './options.js';
import { ca, cache, tokenFile } from './peers.js';

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .argument('<wab>', 'folder of the model_layers_…_WAB.pth files that train.py or train_group.py wrote')
    .argument('<factors>', 'folder for the factor files')
    .addOption(
      new Option(
        '--activation <f>',
        'activation of the factors, which the files do not name (default: the one that fits the weights better)',
      ).choices(REFERENCE_ACTIVATIONS),
    )
    .addOption(
      new Option(
        '--dtype <dtype>',
        'dtype of the factors (default: that of the experts; bfloat16 if they are quantised)',
      ).choices(Object.keys(FLOAT_NAMES)),
    )
    .addOption(engine())
    .addOption(threads())
    .addOption(force())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .action(async (model: string, wab: string, factors: string, flags) => {
      const { importFactors } = await import('../../streams/operations/import.js');
      const { runAndPrint } = await import('./run.js');
      await runAndPrint(factors, flags, (run) =>
        importFactors(model, wab, factors, compressOptions(flags) as ImportOptions, run),
      );
    });
}
