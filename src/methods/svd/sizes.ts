/** Chooses the rank from the options. */
import { NotSmallerError, OptionError } from '../../errors.js';
import { type CompleteOptions, DEFAULT_KEEP, type MethodOptions, type ProjectionShape } from '../method.js';
import { denseParameters, storedParameters } from '../parameters.js';
import { type Problem, stores } from './problem.js';

/** Fills in defaults. Throws `OptionError` if both rank and share are given. */
export function completeOptions({ rank, keep, ...given }: MethodOptions): CompleteOptions {
  if (rank !== undefined && keep !== undefined)
    throw new OptionError('--rank', 'give either the rank or the share to keep, not both');
  const share = rank === undefined ? (keep ?? DEFAULT_KEEP) : undefined;
  return { ...given, rank, keep: share, groups: 1, solver: 'svd', steps: 1 };
}

/** Plans the factors. Throws `OptionError` and `NotSmallerError`. */
export function planSizes(projections: readonly ProjectionShape[], options: CompleteOptions): Problem[] {
  const rank = options.rank ?? rankToKeep(projections, options.keep);
  const factorised = projections.filter((it) => it.factorised);
  const most = Math.min(...factorised.map(({ rows, cols }) => Math.ceil((rows * cols) / (rows + cols)) - 1));
  return factorised.map(({ experts, rows, cols, example }) => {
    const problem = { experts, rows, cols, rank };
    const before = denseParameters(problem);
    const after = storedParameters(stores(problem), experts);
    if (after < before) return problem;
    const remedy =
      most >= 1
        ? `Use at most --rank ${most}.`
        : 'Even rank 1 makes some experts no smaller. Leave them out with --layers or --projections.';
    throw new NotSmallerError(before, after, remedy, example);
  });
}

/** The largest r with which at most `keep` of the layers' routed-expert parameters remain. */
function rankToKeep(projections: readonly ProjectionShape[], keep = 1): number {
  let total = 0;
  let fixed = 0; // parameters that do not depend on r
  let perRank = 0;
  for (const { experts: n, rows: p, cols: d, factorised } of projections) {
    total += n * p * d;
    if (factorised) perRank += n * (p + d);
    else fixed += n * p * d;
  }
  const rank = Math.floor((keep * total - fixed) / perRank);
  if (perRank > 0 && rank < 1) {
    const least = Math.ceil((1000 * (fixed + perRank)) / total) / 1000;
    const ways = [
      ...(least < 1 ? [`--keep ${least}`] : []),
      ...(projections.every(({ factorised }) => factorised) ? [] : ['more --projections']),
    ];
    throw new OptionError(
      '--keep',
      `even rank 1 keeps more than ${keep} of the experts' parameters; the least possible is ${least}.${ways.length ? ` Use ${ways.join(', or ')}.` : ''}`,
    );
  }
  return rank;
}
