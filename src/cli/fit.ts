import { type Command, InvalidArgumentError, Option } from 'commander';
import type { FitSlice } from '../conversion/fit-slices.js';
import { addFactorisationOptions } from './factorisation-options.js';
import { compressOptions, force, json, MODEL, report, saveEvery } from './options.js';
import { ca, cache, tokenFile, workers } from './peers.js';

export function define(command: Command): void {
  command.argument(...MODEL).argument('<factors>', 'folder for the factor files');
  addFactorisationOptions(command)
    .addOption(
      new Option(
        '--shard <i/n>',
        'fit only the i-th of n slices of the groups, counted from 0; processes on machines that share the folder fit the others, at any time (docs/cluster.md)',
      ).argParser(slice),
    )
    .addOption(saveEvery())
    .addOption(report())
    .addOption(force())
    .addOption(workers())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .action(async (model: string, factors: string, { shard, ...flags }) => {
      const { fitFactors } = await import('../../streams/operations/fit.js');
      const { runAndPrint } = await import('./run.js');
      await runAndPrint(factors, flags, (run) =>
        fitFactors(model, factors, compressOptions(flags), { ...run, slice: shard }),
      );
    });
}

/** "2/8" → the third of 8 slices */
function slice(text: string): FitSlice {
  const match = /^(\d{1,7})\/(\d{1,7})$/.exec(text.trim());
  const [index, count] = [Number(match?.[1]), Number(match?.[2])];
  if (!match || index >= count)
    throw new InvalidArgumentError('Expected i/n with i from 0 to n-1, e.g. 0/8 to 7/8 for 8 slices.');
  return { index, count };
}
