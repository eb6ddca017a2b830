/** Adds random errors of a given size, and measures the size of errors. */
import type { Random } from '../../src/linalg/random.js';

/** W + N. N has normal numbers with ‖N‖_F² = `squaredNorm`, up to rounding. */
export function addNoise(weights: Float32Array, squaredNorm: number, random: Random): Float32Array {
  const noise = Float64Array.from(weights, () => random.normal());
  const scale = Math.sqrt(squaredNorm / noise.reduce((sum, value) => sum + value * value, 0));
  return weights.map((value, i) => value + scale * (noise[i] as number));
}

/** ‖W‖_F². */
export const squaredNorm = (values: Float32Array): number => values.reduce((sum, value) => sum + value * value, 0);

/** ‖A − B‖_F². */
export const squaredDistance = (a: Float32Array, b: Float32Array): number =>
  a.reduce((sum, value, i) => sum + (value - (b[i] as number)) ** 2, 0);
