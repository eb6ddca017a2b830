/** Errors without structure, as large as one likes; and how large errors are. */
import type { Random } from '../../src/linalg/random.js';

/** W + N, N normal numbers with ‖N‖_F² = `squaredNorm` to the last rounding. */
export function addNoise(weights: Float32Array, squaredNorm: number, random: Random): Float32Array {
  const noise = Float64Array.from(weights, () => random.normal());
  const scale = Math.sqrt(squaredNorm / noise.reduce((sum, value) => sum + value * value, 0));
  return weights.map((value, i) => value + scale * (noise[i] as number));
}

export const squaredNorm = (values: Float32Array): number => values.reduce((sum, value) => sum + value * value, 0);

export const squaredDistance = (a: Float32Array, b: Float32Array): number =>
  a.reduce((sum, value, i) => sum + (value - (b[i] as number)) ** 2, 0);
