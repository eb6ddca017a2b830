/** Flags that several commands share, and how their text becomes values. */
import { readFile } from 'node:fs/promises';
import { type Command, InvalidArgumentError, Option } from 'commander';
import { type CompressOptions, DTYPE_NAMES, FORMATS, METHOD_NAMES, SOLVER_NAMES } from '../conversion/settings.js';
import { ENGINE_CHOICES } from '../engine/choose-engine.js';
import { DEFAULT_ENGINE } from '../engine/create-engine.js';
import { OptionError } from '../errors.js';
import { parseBytes } from '../format.js';
import { QUALITY_NAMES } from '../methods/method.js';
import { ACTIVATIONS } from '../methods/mobe/problem.js';
import { QUALITIES } from '../methods/mobe/sizes.js';
import { DEFAULT_METHOD, METHODS } from '../methods/registry.js';
import { DEFAULT_PROJECTIONS, PROJECTIONS } from '../models/family.js';

/** 150, 600 or 3000 */
const QUALITY_STEPS = Object.values(QUALITIES)
  .map(({ varpro }) => varpro)
  .join(', ');

/** mobe: MoBE; … */
const METHOD_TITLES = Object.values(METHODS)
  .map(({ name, title }) => `${name}: ${title}`)
  .join('; ');

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

export const format = (): Option =>
  new Option('--format <format>', 'mobe: native factors; hf: standard weights rebuilt from them')
    .choices(FORMATS)
    .default('mobe');

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

/** The flags that say what to factorise and how; `plan`, `compress` and `fit` have them all. */
export function addFactorisationOptions(command: Command): Command {
  return command
    .addOption(
      new Option('--method <method>', `how experts are factorised; ${METHOD_TITLES}`)
        .choices(METHOD_NAMES)
        .default(DEFAULT_METHOD.name),
    )
    .addOption(
      new Option('--bases <m>', 'bases a layer and projection share').argParser(positiveInteger).conflicts('keep'),
    )
    .addOption(
      new Option(
        '--keep <share>',
        "share of the converted layers' routed-expert parameters (gate, up and down) to keep; picks the bases, or the rank of svd (default: 0.76)",
      ).argParser(share),
    )
    .addOption(
      new Option('--rank <r>', "rows of a basis (default: the expert's own rows); columns of svd's factors").argParser(
        positiveInteger,
      ),
    )
    .addOption(new Option('--activation <f>', 'applied to the mixed bases (default: silu)').choices(ACTIVATIONS))
    .addOption(
      new Option('--projections <list>', 'which to factorise, comma-separated; down_proj is a third')
        .argParser(projections)
        .default([...DEFAULT_PROJECTIONS], DEFAULT_PROJECTIONS.join(',')),
    )
    .addOption(
      new Option(
        '--groups <g>',
        "cut a layer's experts into parts, in order, each with its share of the bases (default: 1)",
      ).argParser(positiveInteger),
    )
    .addOption(
      new Option('--layers <list>', 'which to convert, e.g. 0-3,7 (default: all with routed experts)').argParser(
        layers,
      ),
    )
    .addOption(
      new Option('--dtype <dtype>', "of the factors or rebuilt weights (default: the experts' own)").choices(
        Object.keys(DTYPE_NAMES),
      ),
    )
    .addOption(
      new Option('--solver <solver>', "varpro: this project's (default); adam: the reference's").choices(SOLVER_NAMES),
    )
    .addOption(
      new Option('--quality <quality>', 'the time a fit may take: fast, balanced or best (default: balanced)').choices(
        QUALITY_NAMES,
      ),
    )
    .addOption(
      new Option('--steps <n>', `most solver steps a group (default: by quality, ${QUALITY_STEPS})`).argParser(
        positiveInteger,
      ),
    )
    .addOption(new Option('--learning-rate <rate>', "(default: the solver's own)").argParser(positiveNumber))
    .addOption(
      new Option(
        '--batch-experts <n>',
        'experts a batch; bounds the working set of a step (default: by size)',
      ).argParser(positiveInteger),
    )
    .addOption(engine())
    .addOption(threads())
    .addOption(new Option('--seed <n>', 'of the random start').argParser(wholeNumber).default(0))
    .addOption(maxMemory());
}

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

function positiveNumber(text: string): number {
  const value = realNumber(text);
  if (value <= 0) throw new InvalidArgumentError('Expected a number above 0.');
  return value;
}

function share(text: string): number {
  const value = positiveNumber(text);
  if (value >= 1) throw new InvalidArgumentError('Expected a share between 0 and 1, e.g. 0.76.');
  return value;
}

export function bytes(text: string): number {
  const value = parseBytes(text);
  if (value === undefined) throw new InvalidArgumentError('Expected a size, e.g. 8GiB, 500MB or a number of bytes.');
  return value;
}

function projections(text: string): string[] {
  const names = text.split(',').map((name) => name.trim());
  const unknown = names.find((name) => !PROJECTIONS.some((known) => known === name));
  if (unknown !== undefined) throw new InvalidArgumentError(`"${unknown}" is not one of ${PROJECTIONS.join(', ')}.`);
  return names;
}

/** The file that an option names. */
export async function readOptionFile(option: string, file: string): Promise<Buffer> {
  try {
    return await readFile(file);
  } catch (error) {
    throw new OptionError(option, `${file} cannot be read: ${(error as Error).message}`);
  }
}

/** "0-3,7" → [0, 1, 2, 3, 7]; "none" → [] */
export function layers(text: string): number[] {
  if (text === 'none') return [];
  const numbers = new Set<number>();
  for (const part of text.split(',')) {
    const match = /^\s*(\d{1,6})\s*(?:-\s*(\d{1,6})\s*)?$/.exec(part);
    const first = Number(match?.[1]);
    const last = Number(match?.[2] ?? match?.[1]);
    if (!match || last < first) throw new InvalidArgumentError(`"${part}" is neither a layer nor a range like 0-3.`);
    for (let layer = first; layer <= last; layer++) numbers.add(layer);
  }
  return [...numbers].sort((a, b) => a - b);
}
