import { add, div, mul, sqrt, square, sum, type Value } from '../engine/ops.js';

/** x / √(mean(x²) + ε) · weight over the last axis. x: (…, d), weight: (d). */
export function rmsNorm(x: Value, weight: Value, epsilon: number): Value {
  const last = x.shape.length - 1;
  const mean = div(sum(square(x), [last]), x.shape[last] as number);
  return mul(div(x, sqrt(add(mean, epsilon))), weight);
}
