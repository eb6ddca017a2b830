import { type Command, Option } from 'commander';
import { DTYPE_NAMES } from '../conversion/settings.js';
import { REFERENCE_ACTIVATIONS } from '../methods/mobe/problem.js';
import { compressOptions, engine, force, json, MODEL, threads } from './options.js';
import { ca, tokenFile } from './peers.js';

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .argument('<wab>', 'folder of the model_layers_…_WAB.pth files that train.py or train_group.py wrote')
    .argument('<factors>', 'folder for the factor files')
    .addOption(
      new Option('--activation <f>', 'they were trained with (default: whichever fits the weights better)').choices(
        REFERENCE_ACTIVATIONS,
      ),
    )
    .addOption(
      new Option('--dtype <dtype>', "of the factors (default: the experts' own)").choices(Object.keys(DTYPE_NAMES)),
    )
    .addOption(engine())
    .addOption(threads())
    .addOption(force())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(json())
    .action(async (model: string, wab: string, factors: string, flags) => {
      const { importFactors } = await import('../../streams/operations/import.js');
      const { runAndPrint } = await import('./run.js');
      await runAndPrint(factors, flags, (run) => importFactors(model, wab, factors, compressOptions(flags), run));
    });
}
