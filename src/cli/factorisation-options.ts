/** The flags that say what to factorise and how. */
import { type Command, InvalidArgumentError, Option } from 'commander';
import { DTYPE_NAMES, FORMATS, METHOD_NAMES, SOLVER_NAMES } from '../conversion/settings.js';
import { QUALITY_NAMES } from '../methods/method.js';
import { ACTIVATIONS } from '../methods/mobe/problem.js';
import { QUALITIES } from '../methods/mobe/sizes.js';
import { DEFAULT_METHOD, METHODS } from '../methods/registry.js';
import { DEFAULT_PROJECTIONS, PROJECTIONS } from '../models/family.js';
import { engine, maxMemory, positiveInteger, positiveNumber, threads, wholeNumber } from './options.js';

/** mobe: MoBE; … */
const METHOD_TITLES = Object.values(METHODS)
  .map(({ name, title }) => `${name}: ${title}`)
  .join('; ');

/** 150, 600 or 3000 */
const QUALITY_STEPS = Object.values(QUALITIES)
  .map(({ varpro }) => varpro)
  .join(', ');

export const format = (): Option =>
  new Option('--format <format>', 'mobe: native factors; hf: standard weights rebuilt from them')
    .choices(FORMATS)
    .default('mobe');

/** `plan`, `compress` and `fit` have them all. */
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

function share(text: string): number {
  const value = positiveNumber(text);
  if (value >= 1) throw new InvalidArgumentError('Expected a share between 0 and 1, e.g. 0.76.');
  return value;
}

function projections(text: string): string[] {
  const names = text.split(',').map((name) => name.trim());
  const unknown = names.find((name) => !PROJECTIONS.some((known) => known === name));
  if (unknown !== undefined) throw new InvalidArgumentError(`"${unknown}" is not one of ${PROJECTIONS.join(', ')}.`);
  return names;
}

/** "0-3,7" → [0, 1, 2, 3, 7]; "none" → [] */
function layers(text: string): number[] {
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
