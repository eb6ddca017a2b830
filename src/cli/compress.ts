import { Command } from 'commander';
import { compress } from '../../streams/operations/compress.js';
import {
  addFactorisationOptions,
  compressOptions,
  force,
  format,
  json,
  keepQuantized,
  MODEL,
  maxError,
  report,
  saveEvery,
  shardSize,
} from './options.js';
import { ca, tokenFile, workers } from './peers.js';
import { runAndPrint } from './run.js';

export function compressCommand(): Command {
  const command = new Command('compress')
    .description('compress a checkpoint into another folder, in one streaming pass')
    .argument(...MODEL)
    .argument('<out>', 'folder to write, new or empty; or ws://host:port/ of "mobe receive", or "-" for a pipe')
    .addOption(format());
  return addFactorisationOptions(command)
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
    .action((model: string, out: string, flags) =>
      runAndPrint(out, flags, (run) => compress(model, out, compressOptions(flags), run)),
    );
}
