/** Covariances from few tokens are shrunk towards the identity. */

/** ρ at so many tokens, in units of the covariance's size. Between these it is interpolated in the logarithm of the tokens. */
const SHRINKAGE = [
  { tokens: 1, share: 0.4 },
  { tokens: 5, share: 0.2 },
  { tokens: 20, share: 0.1 },
] as const;

/** The rule in words, for the record of a run. */
export const SHRINKAGE_RULE = SHRINKAGE.map(({ tokens, share }) => `${share} at ${tokens} tokens a dimension`).join(
  ', ',
);

/** ρ: the share of the identity in the metric of an expert, by its tokens and the width of their inputs. */
export function shrinkage(tokens: number, width: number): number {
  const ratio = tokens / width;
  const above = SHRINKAGE.findIndex((point) => ratio <= point.tokens);
  const last = SHRINKAGE.length - 1;
  if (above <= 0) return SHRINKAGE[above < 0 ? last : 0]?.share as number;
  const [low, high] = [SHRINKAGE[above - 1], SHRINKAGE[above]] as [(typeof SHRINKAGE)[0], (typeof SHRINKAGE)[0]];
  const part = Math.log(ratio / low.tokens) / Math.log(high.tokens / low.tokens);
  return low.share + part * (high.share - low.share);
}
