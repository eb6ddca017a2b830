/** Errors for sizes that are not possible. They name options that are. */
import { NotSmallerError, OptionError } from '../../errors.js';
import type { CompleteOptions, ProjectionShape } from '../method.js';
import { denseParameters } from '../parameters.js';
import { leastErrorSizes } from './default-sizes.js';
import { basesToKeep, leastShare, type Part, rankToKeep, shareOfFactorised } from './kept-share.js';
import { factorParameters, type Sizes } from './problem.js';

/** Whether the factors have fewer parameters than the experts. */
export const isSmaller = (sizes: Sizes): boolean => factorParameters(sizes) < denseParameters(sizes);

const smallest = ({ experts, rows, cols }: Part): Sizes => ({ experts, rows, cols, bases: 1, rank: 1 });

/** Sizes without the options for sizes: those that fit the shapes best. */
const LEAVE_OUT = 'leave out --bases, --rank and --keep, so that sizes are chosen for each layer';

/** Throws `NotSmallerError` if a group's factors would not be smaller. Names the most bases and the largest rank that are. */
export function checkSmaller(
  sizes: readonly Sizes[],
  parts: readonly Part[],
  { groups, bases, rank }: CompleteOptions,
): void {
  const failing = sizes.findIndex((it) => !isSmaller(it));
  if (failing < 0) return;
  const [size, part] = [sizes[failing] as Sizes, parts[failing] as Part];
  if (!isSmaller(smallest(part))) throw nothingSmaller(part);
  const mostBases = groups * Math.min(...sizes.map(basesBelowDense));
  const mostRank = Math.min(...sizes.map(rankBelowDense));
  const ways: string[] = [];
  if (mostBases >= groups)
    ways.push(
      `at most --bases ${mostBases} at ${rank === undefined ? 'full rank' : 'rank'} ${size.rank}${bases === undefined ? ' in place of --keep' : ''}`,
    );
  if (mostRank >= 1 && bases !== undefined) ways.push(`at most --rank ${mostRank} with --bases ${bases}`);
  ways.push(LEAVE_OUT);
  const [first, ...others] = ways;
  const remedy = ways.length === 1 ? first : `Use ${[first, ...others].join(', or ')}`;
  throw new NotSmallerError(
    denseParameters(size),
    factorParameters(size),
    `${remedy?.replace(/^l/, 'L')}.`,
    part.example,
  );
}

/** The most bases with which a group is smaller at its rank. It may be less than 1. */
const basesBelowDense = ({ experts: n, rows: p, cols: d, rank: r }: Sizes): number =>
  Math.ceil((n * p * (d - r)) / (r * d + n)) - 1;

/** The largest rank at which a group is smaller with its bases. It may be less than 1. */
const rankBelowDense = ({ experts: n, rows: p, cols: d, bases: m }: Sizes): number =>
  Math.min(p, d, Math.ceil((n * p * d - n * m) / (n * p + m * d)) - 1);

/** The error for experts that no factors can replace by fewer parameters: they are too few, or their matrices too small. */
export function nothingSmaller(part: Part): NotSmallerError {
  const { experts: n, rows: p, cols: d, example } = part;
  const remedy = `Even one basis of rank 1 for the ${n} experts of ${p} × ${d} that share it is not smaller. Leave them out with --layers, --projections or fewer --groups.`;
  return new NotSmallerError(denseParameters(part), factorParameters(smallest(part)), remedy, example);
}

/** The error for a share that cannot be kept at a rank. Names the least share at this rank, and a rank that reaches it. */
export function shareTooSmall(
  projections: readonly ProjectionShape[],
  parts: readonly Part[],
  options: CompleteOptions,
): OptionError {
  const { keep = 1, keepGiven, rank, groups } = options;
  const basis = groups === 1 ? 'one basis' : 'one basis a group';
  const least = Math.ceil(1000 * leastShare(projections, options)) / 1000;
  const smallerAt = (at: number | undefined, wanted: CompleteOptions): boolean => {
    const bases = basesToKeep(projections, { ...wanted, rank: at }) / groups;
    return (
      bases >= 1 && parts.every((part) => isSmaller({ ...part, bases, rank: at ?? Math.min(part.rows, part.cols) }))
    );
  };
  const wanted = keepGiven ? `${keep}` : `${keep}, the default of --keep`;
  const ways: string[] = [];
  if (least < 1 && smallerAt(rank, { ...options, keep: least })) ways.push(`--keep ${least}`);
  const reaching = ranksToTry(projections, parts, options).find((it) => smallerAt(it, options));
  if (reaching !== undefined) ways.push(`--rank ${reaching}, which reaches ${keep}`);
  const leastAtAny = Math.ceil(1000 * leastShare(projections, { rank: 1, groups })) / 1000;
  const all = projections.map((it) => ({ ...it, factorised: true }));
  if (all.length > parts.length) {
    const most = rankToKeep(all, options);
    if (basesToKeep(all, options) >= groups) ways.push('all --projections');
    else if (reaching === undefined && most >= 1) ways.push(`all --projections at a rank of at most ${most}`);
  }
  ways.push(LEAVE_OUT);
  return new OptionError(
    keepGiven ? '--keep' : '--rank',
    `at ${rank === undefined ? 'full rank' : `rank ${rank}`}, even ${basis} keeps more of the experts' parameters than ${wanted}; the least possible at this rank is ${least}${reaching === undefined ? `, and ${leastAtAny} at any rank with these projections` : ''}. Use ${ways.join(', or ')}.`,
  );
}

/** Ranks at which the wanted share may be possible: that of least expected error, and the largest. */
function ranksToTry(
  projections: readonly ProjectionShape[],
  parts: readonly Part[],
  options: CompleteOptions,
): number[] {
  const share = shareOfFactorised(projections, options.keep ?? 1);
  const ranks = parts.map((part) => leastErrorSizes(part, share * denseParameters(part))?.rank ?? 0);
  const most = Math.min(...parts.map(({ rows, cols }) => Math.min(rows, cols)));
  return [Math.min(...ranks), Math.min(most, rankToKeep(projections, options))].filter((rank) => rank >= 1);
}
