import { type Command, Option } from 'commander';
import { OptionError } from '../errors.js';
import { addFactorisationOptions, format } from './factorisation-options.js';
import {
  allowLarger,
  calibrationTokens,
  compressOptions,
  force,
  json,
  keepQuantized,
  MODEL,
  maxError,
  OUT,
  report,
  saveEvery,
  sequenceLength,
  shardSize,
} from './options.js';
import { ca, cache, tokenFile, workers } from './peers.js';

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .argument(...OUT)
    .addOption(format());
  addFactorisationOptions(command)
    .addOption(
      new Option(
        '--calibrate <text...>',
        'text as for mobe calibrate, in place of --calibration: its record is made while it is used. At most two layers of it are on disk, and the model runs twice, for the allocation and for the fits',
      ).conflicts('calibration'),
    )
    .addOption(calibrationTokens())
    .addOption(sequenceLength())
    .addOption(shardSize())
    .addOption(keepQuantized())
    .addOption(maxError())
    .addOption(saveEvery())
    .addOption(report())
    .addOption(allowLarger())
    .addOption(force())
    .addOption(workers())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .addHelpText(
      'after',
      `
Examples
  mobe compress Qwen3-30B-A3B Qwen3-30B-A3B-MoBE                      24 % fewer expert parameters, native format
  mobe compress Qwen3-30B-A3B Qwen3-30B-A3B-MoBE-hf --format hf       standard weights, which load like the source
  mobe compress hf://Qwen/Qwen3-30B-A3B hf://me/Qwen3-30B-A3B-MoBE    from the hub to the hub; the model is made private
  mobe compress Ling-Lite Ling-MoBE --bases 4 --layers 0-9 --max-memory 12GiB`,
    )
    .action(async (model: string, out: string, flags) => {
      const { calibrate: text, tokens, sequenceLength: length, ...others } = flags;
      const { runAndPrint } = await import('./run.js');
      if (text) {
        const { calibrateAndCompress } = await import('../../streams/operations/calibrate-and-compress.js');
        const texts = { text, tokens, sequenceLength: length };
        await runAndPrint(out, others, (run) => calibrateAndCompress(model, out, texts, compressOptions(others), run));
        return;
      }
      for (const [option, value] of [
        ['--tokens', tokens],
        ['--sequence-length', length],
      ] as const)
        if (value !== undefined) throw new OptionError(option, 'it is for the text of --calibrate, which is not given');
      const { compress } = await import('../../streams/operations/compress.js');
      await runAndPrint(out, others, (run) => compress(model, out, compressOptions(others), run));
    });
}
