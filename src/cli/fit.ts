import type { Command } from 'commander';
import { addFactorisationOptions } from './factorisation-options.js';
import { compressOptions, force, json, MODEL, report, saveEvery } from './options.js';
import { ca, cache, tokenFile, workers } from './peers.js';

export function define(command: Command): void {
  command.argument(...MODEL).argument('<factors>', 'folder for the factor files');
  addFactorisationOptions(command)
    .addOption(saveEvery())
    .addOption(report())
    .addOption(force())
    .addOption(workers())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .action(async (model: string, factors: string, flags) => {
      const { fitFactors } = await import('../../streams/operations/fit.js');
      const { runAndPrint } = await import('./run.js');
      await runAndPrint(factors, flags, (run) => fitFactors(model, factors, compressOptions(flags), run));
    });
}
