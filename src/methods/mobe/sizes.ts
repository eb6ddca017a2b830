/** Chooses the sizes of a group's factors from the options. */
import { OptionError } from '../../errors.js';
import { formatPercent } from '../../format.js';
import {
  type CompleteOptions,
  DEFAULT_KEEP,
  type DefaultSizes,
  type MethodOptions,
  type ProjectionShape,
  type Quality,
} from '../method.js';
import { denseParameters } from '../parameters.js';
import { leastErrorSizes, paperSizes } from './default-sizes.js';
import { basesToKeep, leastShare, type Part, shareOfFactorised } from './kept-share.js';
import { type Activation, factorParameters, type Problem, type Sizes, type SolverName } from './problem.js';
import { checkSmaller, isSmaller, nothingSmaller, shareTooSmall } from './size-errors.js';

/** The most steps of a fit, by quality and solver. Those of adam are in the paper's range. */
export const QUALITIES = {
  fast: { varpro: 150, adam: 2000 },
  balanced: { varpro: 600, adam: 10_000 },
  best: { varpro: 3000, adam: 50_000 },
} as const satisfies Record<Quality, Record<SolverName, number>>;

/**
 * The share of these steps that a varpro fit in a metric takes. Such a step takes 1.7 times as long, and on the fixture the last quarter of
 * 600 lowers the KL by 1 %.
 */
const METRIC_SHARE = 0.75;

/** Fills in defaults. */
export function completeOptions({
  bases,
  keep,
  rank,
  groups = 1,
  activation = 'silu',
  solver = 'varpro',
  quality = 'balanced',
  steps,
  ...given
}: MethodOptions & { readonly solver?: string | undefined }): CompleteOptions {
  const inMetric = given.calibration !== undefined && given.metric !== 'none' && solver === 'varpro';
  const planned = QUALITIES[quality][solver as SolverName] * (inMetric ? METRIC_SHARE : 1);
  const sizes = { bases, rank, keep: bases === undefined ? (keep ?? DEFAULT_KEEP) : undefined };
  const keepGiven = keep !== undefined;
  return { ...given, ...sizes, keepGiven, groups, activation, solver, quality, steps: steps ?? Math.round(planned) };
}

/**
 * Plans the factors. A projection's experts are cut in order into groups, and each group gets its share of the bases (the
 * reference's `train_group.py`). Throws `OptionError` and `NotSmallerError`.
 */
export function planSizes(projections: readonly ProjectionShape[], options: CompleteOptions): Problem[] {
  const activation = options.activation as Activation;
  return chooseSizes(projections, options).sizes.map((sizes) => ({ ...sizes, activation }));
}

/** The sizes that are taken because the default share is not possible at full rank, and why; else undefined. */
export function defaultSizes(
  projections: readonly ProjectionShape[],
  options: CompleteOptions,
): DefaultSizes | undefined {
  return chooseSizes(projections, options).instead;
}

interface Chosen {
  readonly sizes: Sizes[];
  readonly instead?: DefaultSizes;
}

function chooseSizes(projections: readonly ProjectionShape[], options: CompleteOptions): Chosen {
  const parts = partsOf(projections, options);
  if (parts.length === 0) return { sizes: [] };
  if (parts.some((part) => part.bases !== undefined)) {
    const sizes = parts.map((part) => sized(part, part.bases as number, options));
    checkSmaller(sizes, parts, options);
    return { sizes };
  }
  const bases = options.bases ?? basesToKeep(projections, options);
  const possible = options.bases !== undefined || bases >= options.groups;
  const sizes = possible ? parts.map((part) => sized(part, bases, options)) : undefined;
  if (options.bases === undefined && options.rank === undefined && !options.keepGiven && !sizes?.every(isSmaller))
    return sizesByProjection(projections, parts, options);
  if (!sizes) throw shareTooSmall(projections, parts, options);
  checkSmaller(sizes, parts, options);
  return { sizes };
}

/** The first part of each factorised projection. Throws `OptionError` if the experts cannot be cut into groups. */
function partsOf(projections: readonly ProjectionShape[], { rank, groups }: CompleteOptions): Part[] {
  return projections
    .filter(({ factorised }) => factorised)
    .map(({ experts, rows, cols, bases, example }) => {
      const most = Math.min(rows, cols);
      if (rank !== undefined && rank > most)
        throw new OptionError(
          '--rank',
          `${rank} is more than an expert has: ${example.name} is ${example.rows}×${example.cols}, so at most ${most}`,
        );
      checkDivisible('experts of a layer', experts, groups);
      return { experts: experts / groups, rows, cols, bases, example };
    });
}

function sized({ experts, rows, cols }: Part, bases: number, { groups, rank }: CompleteOptions): Sizes {
  checkDivisible('bases', bases, groups);
  return { experts, rows, cols, bases: bases / groups, rank: rank ?? Math.min(rows, cols) };
}

function checkDivisible(what: string, count: number, groups: number): void {
  if (count % groups !== 0)
    throw new OptionError('--groups', `the ${count} ${what} cannot be cut into ${groups} equal parts`);
}

/**
 * Chooses sizes for each projection by itself: the paper's if it has some, else those of least expected error that keep the default
 * share. If no sizes keep so little, it takes the smallest. Throws `NotSmallerError` if the smallest factors are not smaller than the
 * experts.
 */
function sizesByProjection(
  projections: readonly ProjectionShape[],
  parts: readonly Part[],
  options: CompleteOptions,
): Chosen {
  const { groups, keep = DEFAULT_KEEP } = options;
  const share = shareOfFactorised(projections, keep);
  let paper = true;
  const sizes = parts.map((part): Sizes => {
    const whole = paperSizes({ ...part, experts: part.experts * groups });
    if (whole && whole.bases % groups === 0) return { ...whole, experts: part.experts, bases: whole.bases / groups };
    paper = false;
    const { experts, rows, cols } = part;
    const least = { experts, rows, cols, rank: 1, bases: 1 };
    const chosen = leastErrorSizes(part, share * denseParameters(part)) ?? least;
    if (!isSmaller(chosen)) throw nothingSmaller(part);
    return chosen;
  });
  return { sizes, instead: describeDefaults(projections, sizes, options, paper) };
}

function describeDefaults(
  projections: readonly ProjectionShape[],
  sizes: readonly Sizes[],
  { groups, keep = DEFAULT_KEEP }: CompleteOptions,
  paper: boolean,
): DefaultSizes {
  const least = leastShare(projections, { rank: undefined, groups });
  const total = projections.reduce((sum, it) => sum + denseParameters(it), 0);
  const saved = sizes.reduce((sum, it) => sum + groups * (denseParameters(it) - factorParameters(it)), 0);
  const [first] = sizes as [Sizes];
  const bases = first.bases * groups;
  const alike = sizes.every(({ bases: m, rank: r }) => m === first.bases && r === first.rank);
  const pair = `rank ${first.rank} and ${bases} ${bases === 1 ? 'basis' : 'bases'}`;
  const chosen = paper
    ? `the paper's sizes for these experts, ${pair}, are taken`
    : `the sizes of least expected error are taken, ${alike ? pair : "each layer's and projection's own"}`;
  const reason =
    least > keep
      ? `${formatPercent(keep)} of the experts' parameters cannot be kept at full rank, where the least is ${formatPercent(least)}`
      : 'one number of bases at full rank does not make the experts of every layer smaller';
  return {
    note: `${reason}: ${chosen}; they keep ${formatPercent(1 - saved / total)}`,
    options: alike ? { bases, rank: first.rank, keep: undefined } : {},
  };
}
