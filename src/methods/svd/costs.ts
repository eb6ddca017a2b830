/** The memory and the operations of an expert's decomposition. */
import type { EngineFacts } from '../../engine/engine.js';
import type { ProductShape } from '../../engine/gemm-rate.js';
import { TensorTooLargeError } from '../../errors.js';
import { formatBytes } from '../../format.js';
import type { Problem } from './problem.js';

/** The bytes of W, the remainder and their product; of A and V, twice; of the Gram matrix and its vectors, in f32 and in f64. */
export function workingBytes({ rows: p, cols: d, rank: r }: Problem): number {
  const short = Math.min(p, d);
  return 4 * (3 * p * d + 2 * r * (p + d) + short * short + short * r) + 8 * (short * short + r * short);
}

/** Always 1: experts are decomposed one at a time. Throws `TensorTooLargeError` if an expert exceeds the engine's limit. */
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

/** An operation of the f64 loops takes as long as this many of a matrix product: 0.45 against 47 GFLOP/s at 768 × 2048. */
const SCALAR_OPERATION = 100;

/**
 * The operations of a fit: on the engine the Gram matrix, V, A and its refinements; in f64 the tridiagonal form and its vectors,
 * whose operations count `SCALAR_OPERATION` times.
 */
export function operations({ experts: n, rows: p, cols: d, rank: r }: Problem): number {
  const short = Math.min(p, d);
  const products = 2 * short * p * d + 2 * p * r * d * (2 + 2 * REFINEMENTS);
  const eigen = (4 / 3) * short ** 3 + 2 * short * short * r;
  return n * (products + SCALAR_OPERATION * eigen);
}

/** The number of rounds in which A is fitted to the rounded V (expert-factors.ts). */
export const REFINEMENTS = 3;

export const product = ({ rows, cols, rank }: Problem): ProductShape => ({ rows, cols, rank });
