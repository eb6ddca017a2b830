import type { Command } from 'commander';
import { addFactorisationOptions, format } from './factorisation-options.js';
import {
  compressOptions,
  force,
  json,
  keepQuantized,
  MODEL,
  maxError,
  report,
  saveEvery,
  shardSize,
} from './options.js';
import { ca, tokenFile, workers } from './peers.js';

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .argument('<out>', 'folder to write, new or empty; or ws://host:port/ of "mobe receive", or "-" for a pipe')
    .addOption(format());
  addFactorisationOptions(command)
    .addOption(shardSize())
    .addOption(keepQuantized())
    .addOption(maxError())
    .addOption(saveEvery())
    .addOption(report())
    .addOption(force())
    .addOption(workers())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(json())
    .addHelpText(
      'after',
      `
Examples
  mobe compress Qwen3-30B-A3B Qwen3-30B-A3B-MoBE                      24 % fewer expert parameters, native format
  mobe compress Qwen3-30B-A3B Qwen3-30B-A3B-MoBE-hf --format hf       standard weights, for vLLM or transformers as they are
  mobe compress Ling-Lite Ling-MoBE --bases 4 --layers 0-9 --max-memory 12GiB`,
    )
    .action(async (model: string, out: string, flags) => {
      const { compress } = await import('../../streams/operations/compress.js');
      const { runAndPrint } = await import('./run.js');
      await runAndPrint(out, flags, (run) => compress(model, out, compressOptions(flags), run));
    });
}
