/** The memory and the operations of rounding. Experts are rounded one at a time, in JavaScript's f64. */
import type { FitMemory, MetricForm } from '../method.js';
import type { Problem } from './problem.js';

/** An operation of the f64 loops takes as long as this many of a matrix product: 4 against 47 GFLOP/s at 768 × 2048. */
const SCALAR_OPERATION = 12;
/** The search for a scale takes 100 ns a weight, in operations of a matrix product. */
const SEARCH = 4700;

/** The order of the covariance of inputs. It is that of the stored rows, of which the problem does not know which side they are. */
const orderOf = ({ rows, cols }: Problem, { rows: P, columns: C }: MetricForm): number =>
  Math.max(P && P.form !== 'diagonal' ? rows : 0, C && C.form !== 'diagonal' ? cols : 0);

/** Bytes for one expert: its weights as f32 in six stages. What rounding in a metric takes is counted for all methods alike. */
export const workingBytes = ({ rows, cols }: Problem): number => 24 * rows * cols;

/** A fit keeps nothing. */
export const memory = (problem: Problem): FitMemory => ({ targets: 0, state: 0, batch: workingBytes(problem) });

/** The factorisation of the metric, and the sums of errors; without a metric, the search for scales. */
export function operations(problem: Problem, { metric = {} }: { readonly metric?: MetricForm | undefined }): number {
  const order = orderOf(problem, metric);
  const weights = problem.rows * problem.cols;
  return problem.experts * (SEARCH * weights + SCALAR_OPERATION * ((2 / 3) * order ** 3 + weights * order));
}
