/** Sums over weights from which σ follows, gathered part by part in f64. */
export interface Moments {
  readonly count: number;
  readonly sum: number;
  /** Σw² */
  readonly squares: number;
  /** Number of NaNs and infinities. */
  readonly nonFinite: number;
  readonly min: number;
  readonly max: number;
}

/** The moments of no weights. */
export const NO_MOMENTS: Moments = {
  count: 0,
  sum: 0,
  squares: 0,
  nonFinite: 0,
  min: Number.POSITIVE_INFINITY,
  max: Number.NEGATIVE_INFINITY,
};

/** Measures the moments of some weights. */
export function measureMoments(values: Float32Array): Moments {
  let sum = 0;
  let squares = 0;
  let min = Number.POSITIVE_INFINITY;
  let max = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < values.length; i++) {
    const value = values[i] as number;
    sum += value;
    squares += value * value;
    if (value < min) min = value;
    if (value > max) max = value;
  }
  // NaNs and infinities show in the sum of squares, so they are counted only if that is not finite.
  const nonFinite = Number.isFinite(squares)
    ? 0
    : values.reduce((count, value) => count + (Number.isFinite(value) ? 0 : 1), 0);
  return { count: values.length, sum, squares, nonFinite, min, max };
}

/** The moments of two sets of weights together. */
export const addMoments = (a: Moments, b: Moments): Moments => ({
  count: a.count + b.count,
  sum: a.sum + b.sum,
  squares: a.squares + b.squares,
  nonFinite: a.nonFinite + b.nonFinite,
  min: Math.min(a.min, b.min),
  max: Math.max(a.max, b.max),
});

/**
 * σ, the standard deviation of all weights (unbiased, like torch's `std`); 0 if all are equal. A fit divides weights by σ but
 * does not subtract their mean. The reference does not either: in the paper's models the mean is five orders of magnitude
 * smaller than σ.
 */
export function deviation({ count, sum, squares, min, max }: Moments): number {
  if (min === max) return 0;
  const mean = sum / count;
  return Math.sqrt(Math.max(0, squares - count * mean * mean) / Math.max(1, count - 1));
}
