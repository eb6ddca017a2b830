/** What normalisation needs to know of a group of weights, gathered tensor by tensor in f64. */
export interface Moments {
  readonly count: number;
  readonly sum: number;
  /** Σw² */
  readonly squares: number;
  readonly nonFinite: number;
  readonly min: number;
  readonly max: number;
}

export const NO_MOMENTS: Moments = {
  count: 0,
  sum: 0,
  squares: 0,
  nonFinite: 0,
  min: Number.POSITIVE_INFINITY,
  max: Number.NEGATIVE_INFINITY,
};

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
  // A NaN or an infinity anywhere shows in the sums; only then is it worth counting them.
  const nonFinite = Number.isFinite(squares)
    ? 0
    : values.reduce((count, value) => count + (Number.isFinite(value) ? 0 : 1), 0);
  return { count: values.length, sum, squares, nonFinite, min, max };
}

export const addMoments = (a: Moments, b: Moments): Moments => ({
  count: a.count + b.count,
  sum: a.sum + b.sum,
  squares: a.squares + b.squares,
  nonFinite: a.nonFinite + b.nonFinite,
  min: Math.min(a.min, b.min),
  max: Math.max(a.max, b.max),
});

/**
 * σ, the standard deviation over all weights of a group (unbiased, as torch's `std`); 0 where all are equal. The mean is
 * not subtracted from the weights: the reference does not, and it is five orders smaller than σ in the paper's models.
 */
export function deviation({ count, sum, squares, min, max }: Moments): number {
  if (min === max) return 0;
  const mean = sum / count;
  return Math.sqrt(Math.max(0, squares - count * mean * mean) / Math.max(1, count - 1));
}
