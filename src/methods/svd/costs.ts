/** What an expert's decomposition holds and computes. */
import type { EngineFacts } from '../../engine/engine.js';
import type { ProductShape } from '../../engine/gemm-rate.js';
import { TensorTooLargeError } from '../../errors.js';
import { formatBytes } from '../../format.js';
import type { Problem } from './problem.js';

/** W, the remainder and their product; A and V twice; the Gram matrix, in f64 as well; its vectors. */
export function workingBytes({ rows: p, cols: d, rank: r }: Problem): number {
  const short = Math.min(p, d);
  return 4 * (3 * p * d + 2 * r * (p + d) + short * short + short * r) + 8 * (short * short + r * short);
}

/** Experts are decomposed one at a time. */
export function largestBatch(
  { rows, cols }: Problem,
  { device, maxTensorBytes = Number.POSITIVE_INFINITY }: EngineFacts,
) {
  const bytes = 4 * Math.max(rows * cols, Math.min(rows, cols) ** 2);
  if (bytes > maxTensorBytes)
    throw new TensorTooLargeError(
      `The weights of one expert (${rows} × ${cols})`,
      formatBytes(bytes),
      device,
      formatBytes(maxTensorBytes),
      'Use --engine onnx-cpu.',
    );
  return 1;
}

/** One operation of the f64 loops takes as long as so many of matrix products: 0.45 against 47 GFLOP/s, measured at 768 × 2048. */
const SCALAR_OPERATION = 100;

/** Gram matrix, V, A and its refinements, by the engine; tridiagonal form and vectors in f64. */
export function operations({ experts: n, rows: p, cols: d, rank: r }: Problem): number {
  const short = Math.min(p, d);
  const products = 2 * short * p * d + 2 * p * r * d * (2 + 2 * REFINEMENTS);
  const eigen = (4 / 3) * short ** 3 + 2 * short * short * r;
  return n * (products + SCALAR_OPERATION * eigen);
}

/** Rounds in which A is fitted to the rounded V (expert-factors.ts). */
export const REFINEMENTS = 3;

export const product = ({ rows, cols, rank }: Problem): ProductShape => ({ rows, cols, rank });
