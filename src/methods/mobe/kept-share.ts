/** The share of the layers' routed-expert parameters that factors keep, and the number of bases that keeps a share. */
import type { CompleteOptions, ProjectionShape } from '../method.js';
import { denseParameters } from '../parameters.js';

/** The part of a projection's experts that are factorised together: all of them, or with `--groups` the first group. */
export type Part = Omit<ProjectionShape, 'factorised'>;

/** The parameters before, those after that do not depend on m, and those for each basis. `rank` undefined means full rank. */
function keptParameters(
  projections: readonly ProjectionShape[],
  { rank, groups }: Pick<CompleteOptions, 'rank' | 'groups'>,
) {
  let total = 0;
  let fixed = 0;
  let perBasis = 0;
  for (const { experts: n, rows: p, cols: d, factorised } of projections) {
    const r = rank ?? Math.min(p, d);
    total += n * p * d;
    fixed += factorised ? n * p * r : n * p * d;
    if (factorised) perBasis += r * d + n / groups;
  }
  return { total, fixed, perBasis };
}

/** The largest m with which at most `keep` of the parameters remain. It is less than `groups` if that is not possible. */
export function basesToKeep(projections: readonly ProjectionShape[], options: CompleteOptions): number {
  const { keep = 1, groups } = options;
  const { total, fixed, perBasis } = keptParameters(projections, options);
  return groups * Math.floor((keep * total - fixed) / perBasis / groups);
}

/** The share that remains with one basis in each group. */
export function leastShare(
  projections: readonly ProjectionShape[],
  options: Pick<CompleteOptions, 'rank' | 'groups'>,
): number {
  const { total, fixed, perBasis } = keptParameters(projections, options);
  return (fixed + options.groups * perBasis) / total;
}

/** The largest rank at which one basis in each group keeps at most `keep`. It may be less than 1. */
export function rankToKeep(
  projections: readonly ProjectionShape[],
  { keep = 1, groups }: Pick<CompleteOptions, 'keep' | 'groups'>,
): number {
  const none = leastShare(projections, { rank: 0, groups });
  const perRank = leastShare(projections, { rank: 1, groups }) - none;
  return Math.floor((keep - none) / perRank);
}

/** The share of the factorised projections' parameters that may remain, so that `keep` of all remain. */
export function shareOfFactorised(projections: readonly ProjectionShape[], keep: number): number {
  const total = projections.reduce((sum, it) => sum + denseParameters(it), 0);
  const factorised = projections.reduce((sum, it) => sum + (it.factorised ? denseParameters(it) : 0), 0);
  return 1 - ((1 - keep) * total) / factorised;
}
