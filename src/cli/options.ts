/** Flags that several commands share, and how their text becomes values. */
import { readFile } from 'node:fs/promises';
import { InvalidArgumentError, Option } from 'commander';
import type { CompressOptions } from '../conversion/settings.js';
import { ENGINE_CHOICES } from '../engine/choose-engine.js';
import { DEFAULT_ENGINE } from '../engine/create-engine.js';
import { OptionError } from '../errors.js';
import { parseBytes } from '../format.js';

export const MODEL = [
  '<model>',
  'folder of a Hugging Face checkpoint (config.json and *.safetensors), or ws://host:port/ of "mobe serve"',
] as const;

export const json = (): Option => new Option('--json', 'print one JSON object to stdout');
export const force = (): Option => new Option('--force', 'replace what an earlier run left in the output folder');

export const report = (): Option =>
  new Option('--report', 'also write a page about the result into it, as "mobe report" does');

export const saveEvery = (): Option =>
  new Option(
    '--save-every <seconds>',
    'how often a running fit is saved, to go on from after an interruption (default: 120)',
  ).argParser(positiveNumber);

export const keepQuantized = (): Option =>
  new Option(
    '--keep-quantized',
    'leave FP8 and INT4 tensors as they are, but for the experts of converted layers (default: all become bf16)',
  );

export const threads = (): Option =>
  new Option('--threads <n>', 'CPU threads (default: all)').argParser(positiveInteger);

export const engine = (): Option =>
  new Option('--engine <engine>', 'what runs the arithmetic; auto: the fastest that works here (see "mobe engines")')
    .choices(ENGINE_CHOICES)
    .default(DEFAULT_ENGINE);

export const maxError = (): Option =>
  new Option(
    '--max-error <e>',
    'keep groups uncompressed whose relative error is larger, e.g. 0.4; with --format mobe only in "mobe export", and there whole layers',
  ).argParser(positiveNumber);

export const shardSize = (): Option =>
  new Option('--shard-size <size>', 'most tensor bytes in one output shard, e.g. 5GB or 2GiB (default: 5GB)').argParser(
    bytes,
  );

export const maxMemory = (): Option =>
  new Option('--max-memory <size>', 'peak memory to stay within, e.g. 8GiB (default: 80 % of this machine)').argParser(
    bytes,
  );

export const expertsPerToken = (): Option =>
  new Option('--experts-per-token <k>', "experts that each token goes to (default: the model's own number)").argParser(
    positiveInteger,
  );

/** The parsed flags of `addFactorisationOptions` (and more) as the library takes them. */
export function compressOptions(flags: Record<string, unknown>): CompressOptions {
  const { json, force, report, tokenFile, ca, workers, saveEvery, ...options } = flags;
  return options as CompressOptions;
}

export function wholeNumber(text: string): number {
  const value = Number(text);
  if (!/^\d+$/.test(text) || !Number.isSafeInteger(value)) throw new InvalidArgumentError('Expected a whole number.');
  return value;
}

export function positiveInteger(text: string): number {
  const value = wholeNumber(text);
  if (value === 0) throw new InvalidArgumentError('Expected a whole number above 0.');
  return value;
}

export function realNumber(text: string): number {
  const value = Number(text);
  if (text.trim() === '' || !Number.isFinite(value)) throw new InvalidArgumentError('Expected a number.');
  return value;
}

export function positiveNumber(text: string): number {
  const value = realNumber(text);
  if (value <= 0) throw new InvalidArgumentError('Expected a number above 0.');
  return value;
}

export function bytes(text: string): number {
  const value = parseBytes(text);
  if (value === undefined) throw new InvalidArgumentError('Expected a size, e.g. 8GiB, 500MB or a number of bytes.');
  return value;
}

/** The file that an option names. */
export async function readOptionFile(option: string, file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (error) {
    throw new OptionError(option, `${file} cannot be read: ${(error as Error).message}`);
  }
}
