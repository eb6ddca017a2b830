import { Command } from 'commander';
import { fitFactors } from '../../streams/operations/fit.js';
import { addFactorisationOptions, compressOptions, force, json, MODEL, report, saveEvery } from './options.js';
import { ca, tokenFile, workers } from './peers.js';
import { runAndPrint } from './run.js';

export function fitCommand(): Command {
  const command = new Command('fit')
    .description('fit the experts and write factor files, for "mobe export"; finished files are kept when run again')
    .argument(...MODEL)
    .argument('<factors>', 'folder for the factor files');
  return addFactorisationOptions(command)
    .addOption(saveEvery())
    .addOption(report())
    .addOption(force())
    .addOption(workers())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(json())
    .action((model: string, factors: string, flags) =>
      runAndPrint(factors, flags, (run) => fitFactors(model, factors, compressOptions(flags), run)),
    );
}
