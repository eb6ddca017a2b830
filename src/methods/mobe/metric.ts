/**
 * The metric in tensor programs. C and P are inputs of these names. Each is a full matrix, a diagonal, or c·I + ZZᵀ as the numbers of
 * Z and then c. If an input is absent, its side is the identity, and the program is the same as without a metric.
 */
import { add, matmul, mul, reshape, slice, type Value } from '../../engine/ops.js';
import type { MetricForm, MetricMatrixForm } from '../method.js';
import type { Problem } from './problem.js';

/** The number of elements of a matrix (size, size) in its form. */
export function matrixElements({ form, rank = 0 }: MetricMatrixForm, size: number): number {
  if (form === 'full') return size * size;
  return form === 'diagonal' ? size : size * rank + 1;
}

/**
 * The shapes of these inputs for `count` experts. C is (count, d, d) if it is full, (count, 1, d) if it is a diagonal, and
 * (count, 1, d·rank + 1) if its rank is low. P is (count, p, p), (count, p, 1) or (count, p·rank + 1, 1). For a matrix that all experts
 * share, count is 1.
 */
export const metricShapes = (
  { rows: p, cols: d }: Pick<Problem, 'rows' | 'cols'>,
  count: number,
  { rows, columns }: MetricForm = {},
) => ({
  C:
    columns &&
    (columns.form === 'full' ? [of(columns, count), d, d] : [of(columns, count), 1, matrixElements(columns, d)]),
  P: rows && (rows.form === 'full' ? [of(rows, count), p, p] : [of(rows, count), matrixElements(rows, p), 1]),
});

const of = ({ shared }: MetricMatrixForm, count: number): number => (shared ? 1 : count);

/** Whether W·C is kept for a fit: A·(FC) − WC takes fewer operations than R·C if C is full. */
export const keepsProduct = ({ columns }: MetricForm = {}): boolean => columns?.form === 'full';

/** M·C, for M (count, k, d). */
export function timesColumns(M: Value, C: Value | undefined): Value {
  if (!C) return M;
  if (C.shape.at(-2) !== 1) return matmul(M, C);
  const size = M.shape.at(-1) as number;
  if (C.shape.at(-1) === size) return mul(M, C);
  const { Z, c } = parts(C, size);
  return add(mul(M, c), matmul(matmul(M, Z), Z, { transposeB: true }));
}

/** P·M, for M (count, p, d). */
export function timesRows(P: Value | undefined, M: Value): Value {
  if (!P) return M;
  if (P.shape.at(-1) !== 1) return matmul(P, M);
  const size = M.shape.at(-2) as number;
  if (P.shape.at(-2) === size) return mul(P, M);
  const { Z, c } = parts(P, size);
  return add(mul(M, c), matmul(Z, matmul(Z, M, { transposeA: true })));
}

/** Z (count, size, rank) and c (count, 1, 1) of a matrix of low rank. */
function parts(matrix: Value, size: number): { Z: Value; c: Value } {
  const count = matrix.shape[0] as number;
  const length = Math.max(matrix.shape[1] as number, matrix.shape[2] as number);
  const flat = reshape(matrix, [count, length]);
  return {
    Z: reshape(slice(flat, 1, 0, length - 1), [count, size, (length - 1) / size]),
    c: reshape(slice(flat, 1, length - 1, length), [count, 1, 1]),
  };
}
