/** Chooses the sizes of a group's factors from the options. */
import { NotSmallerError, OptionError } from '../../errors.js';
import {
  type CompleteOptions,
  DEFAULT_KEEP,
  type MethodOptions,
  type ProjectionShape,
  type Quality,
} from '../method.js';
import { denseParameters } from '../parameters.js';
import { type Activation, factorParameters, type Problem, type SolverName } from './problem.js';

/** The most steps of a fit, by quality and solver. Those of adam are in the paper's range. */
export const QUALITIES = {
  fast: { varpro: 150, adam: 2000 },
  balanced: { varpro: 600, adam: 10_000 },
  best: { varpro: 3000, adam: 50_000 },
} as const satisfies Record<Quality, Record<SolverName, number>>;

/** Fills in defaults. */
export function completeOptions({
  bases,
  keep = DEFAULT_KEEP,
  groups = 1,
  activation = 'silu',
  solver = 'varpro',
  quality = 'balanced',
  steps = QUALITIES[quality][solver as SolverName],
  ...given
}: MethodOptions & { readonly solver?: string | undefined }): CompleteOptions {
  return { ...given, bases, keep: bases === undefined ? keep : undefined, groups, activation, solver, quality, steps };
}

/**
 * Plans the factors. A projection's experts are cut in order into groups, and each group gets its share of the bases (the
 * reference's `train_group.py`). Throws `OptionError` and `NotSmallerError`.
 */
export function planSizes(projections: readonly ProjectionShape[], options: CompleteOptions): Problem[] {
  const { groups, activation } = options;
  const bases = options.bases ?? basesToKeep(projections, options);
  const problems = projections
    .filter(({ factorised }) => factorised)
    .map(({ experts, rows, cols, example }): Problem => {
      const most = Math.min(rows, cols);
      const rank = options.rank ?? most;
      if (rank > most)
        throw new OptionError(
          '--rank',
          `${rank} is more than an expert has: ${example.name} is ${example.rows}×${example.cols}, so at most ${most}`,
        );
      checkDivisible('experts of a layer', experts, groups);
      checkDivisible('bases', bases, groups);
      const part = { experts: experts / groups, rows, cols, bases: bases / groups, rank };
      return { ...part, activation: activation as Activation };
    });
  for (const problem of problems) checkSmaller(problem, groups);
  return problems;
}

function checkDivisible(what: string, count: number, groups: number): void {
  if (count % groups !== 0)
    throw new OptionError('--groups', `the ${count} ${what} cannot be cut into ${groups} equal parts`);
}

/** The largest m with which at most `keep` of the layers' routed-expert parameters remain. */
function basesToKeep(
  projections: readonly ProjectionShape[],
  { keep = 1, rank: wanted, groups }: CompleteOptions,
): number {
  let total = 0;
  let fixed = 0; // parameters that do not depend on m
  let perBasis = 0;
  for (const { experts: n, rows: p, cols: d, factorised } of projections) {
    const r = wanted ?? Math.min(p, d);
    total += n * p * d;
    fixed += factorised ? n * p * r : n * p * d;
    if (factorised) perBasis += r * d + n / groups;
  }
  const bases = groups * Math.floor((keep * total - fixed) / perBasis / groups);
  if (projections.length && bases < 1) {
    const least = Math.ceil((1000 * (fixed + groups * perBasis)) / total) / 1000;
    throw new OptionError(
      '--keep',
      `even ${groups === 1 ? 'one basis' : 'one basis a group'} keeps more than ${keep} of the experts' parameters; the least possible is ${least}. Lower --rank to go below.`,
    );
  }
  return bases;
}

function checkSmaller(problem: Problem, groups: number): void {
  const before = denseParameters(problem);
  const after = factorParameters(problem);
  if (after < before) return;
  const { experts: n, rows: p, cols: d, rank: r } = problem;
  const most = Math.ceil((n * p * (d - r)) / (r * d + n)) - 1;
  const remedy = most >= 1 ? `Use at most --bases ${most * groups} at rank ${r}.` : `Lower --rank (${r}).`;
  throw new NotSmallerError(before, after, remedy);
}
