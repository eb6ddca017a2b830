import { Command, Option } from 'commander';
import { importFactors } from '../../streams/operations/import.js';
import { DTYPE_NAMES } from '../conversion/settings.js';
import { REFERENCE_ACTIVATIONS } from '../methods/mobe/problem.js';
import { compressOptions, engine, force, json, MODEL, threads } from './options.js';
import { ca, tokenFile } from './peers.js';
import { runAndPrint } from './run.js';

export function importCommand(): Command {
  return new Command('import')
    .description(
      'turn the reference implementation\'s factor files into ours, for "mobe export"; nothing in them is executed',
    )
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
    .action((model: string, wab: string, factors: string, flags) =>
      runAndPrint(factors, flags, (run) => importFactors(model, wab, factors, compressOptions(flags), run)),
    );
}
