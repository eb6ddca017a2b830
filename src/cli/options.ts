/** Options that several commands share, and functions that parse their values. */
import { readFile } from 'node:fs/promises';
import { InvalidArgumentError, Option } from 'commander';
import type { CompressOptions } from '../conversion/settings.js';
import { ENGINE_CHOICES } from '../engine/choose-engine.js';
import { DEFAULT_ENGINE } from '../engine/create-engine.js';
import { PRECISIONS } from '../engine/engine.js';
import { OptionError } from '../errors.js';
import { parseBytes } from '../format.js';

export const MODEL = [
  '<model>',
  'checkpoint (config.json and *.safetensors): a folder, hf://org/name[@revision][/folder] on the Hugging Face hub, https://host/folder/ on a server with ranges, s3://bucket/folder, or ws://host:port/ of "mobe serve"',
] as const;

export const OUT = [
  '<out>',
  'folder to write, new or empty; hf://org/name[@branch] or s3://bucket/folder, where finished shards go while the rest is made; ws://host:port/ of "mobe receive"; or "-" for a pipe',
] as const;

export const json = (): Option => new Option('--json', 'print the result to stdout as one JSON object');
export const force = (): Option =>
  new Option('--force', 'start again: replace the files of an earlier run, finished or not, in the output folder');

export const allowLarger = (): Option =>
  new Option('--allow-larger', 'write the result even if it has more bytes than the source');

export const report = (): Option =>
  new Option('--report', 'also write an HTML page about the result into its folder, like "mobe report"');

export const saveEvery = (): Option =>
  new Option(
    '--save-every <seconds>',
    'seconds between two saves of a running fit, from which it resumes after an interruption (default: 120)',
  ).argParser(positiveNumber);

export const keepQuantized = (): Option =>
  new Option(
    '--keep-quantized',
    'keep the quantisation of the source: tensors that are not converted stay as they are, and rebuilt experts are written in FP8, INT4, INT8 or MXFP4 as the source has them (experts in GPTQ, AWQ, NVFP4 and with zero points become bf16); with --format mobe it concerns what is not factorised (default: all are decoded to bf16)',
  );

export const threads = (): Option =>
  new Option('--threads <n>', 'CPU threads (default: all)').argParser(positiveInteger);

export const engine = (): Option =>
  new Option('--engine <engine>', 'engine that computes; auto: the fastest that works here (see "mobe engines")')
    .choices(ENGINE_CHOICES)
    .default(DEFAULT_ENGINE);

export const precision = (): Option =>
  new Option(
    '--precision <precision>',
    'precision of the matrix products in the steps of varpro (default: tf32 on engines that have it, else f32; "mobe engines" lists them)',
  ).choices(PRECISIONS);

export const maxError = (): Option =>
  new Option(
    '--max-error <e>',
    'keep groups uncompressed if their relative error is larger, e.g. 0.4; with --format mobe only in "mobe export", which keeps whole layers',
  ).argParser(positiveNumber);

export const shardSize = (): Option =>
  new Option(
    '--shard-size <size>',
    'the most tensor bytes in one output shard, e.g. 5GB or 2GiB (default: 5GB)',
  ).argParser(bytes);

export const maxMemory = (): Option =>
  new Option(
    '--max-memory <size>',
    "limit of this process's memory, e.g. 8GiB (default: 80 % of this machine's)",
  ).argParser(bytes);

export const calibrationTokens = (): Option =>
  new Option(
    '--tokens <n>',
    'tokens of the text to use (default: as many as give each expert 5 times the width, if the text has them)',
  ).argParser(positiveInteger);

export const sequenceLength = (): Option =>
  new Option('--sequence-length <n>', "tokens of a sequence (default: the model's context, at most 2048)").argParser(
    positiveInteger,
  );

export const expertsPerToken = (): Option =>
  new Option('--experts-per-token <k>', "number of experts for each token (default: the model's own number)").argParser(
    positiveInteger,
  );

/** Converts the parsed options of a command to the options of the library. */
export function compressOptions(flags: Record<string, unknown>): CompressOptions {
  const { json, force, allowLarger, report, tokenFile, ca, cache, workers, saveEvery, ...options } = flags;
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

/** Reads the file that an option names. Throws `OptionError` if it cannot be read. */
export async function readOptionFile(option: string, file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (error) {
    throw new OptionError(option, `${file} cannot be read: ${(error as Error).message}`);
  }
}
