/**
 * A metric inside the programs: C and P are inputs, by name, and each is a full matrix or a diagonal. Without an input its
 * side is the identity, and the program is what it would be without a metric.
 */
import { matmul, mul, type Value } from '../../engine/ops.js';
import type { MetricForm } from '../method.js';
import type { Problem } from './problem.js';

/**
 * The shapes of these inputs for `count` experts: C (count, d, d) or (count, 1, d), P (count, p, p) or (count, p, 1).
 * A matrix that all experts share comes once.
 */
export const metricShapes = ({ rows: p, cols: d }: Problem, count: number, { rows, columns }: MetricForm = {}) => ({
  C: columns && [columns.shared ? 1 : count, columns.form === 'full' ? d : 1, d],
  P: rows && [rows.shared ? 1 : count, p, rows.form === 'full' ? p : 1],
});

/** M·C, for M (count, k, d). */
export function timesColumns(M: Value, C: Value | undefined): Value {
  if (!C) return M;
  return C.shape.at(-2) === 1 ? mul(M, C) : matmul(M, C);
}

/** P·M, for M (count, p, d). */
export function timesRows(P: Value | undefined, M: Value): Value {
  if (!P) return M;
  return P.shape.at(-1) === 1 ? mul(P, M) : matmul(P, M);
}
