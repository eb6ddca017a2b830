/** The covariance of the inputs of single experts, in which the errors of their weights count. */
import { addProduct } from '../linalg/multiply-transposed.js';
import { roundingBytes } from '../linalg/round-with-feedback.js';
import type { FitMemory, GroupShape, Metric, MetricForm, MetricMatrix } from './method.js';

/**
 * The matrix of a metric that weighs the columns of an expert's stored weights, (cols, cols) f32: those are its inputs. Undefined if
 * the metric has none, or only a diagonal, which relates no column to another.
 * @param transposed whether the stored weights are the transpose of the group's matrices
 */
export function inputGram(
  metric: Metric | undefined,
  { rows, cols }: Pick<GroupShape, 'rows' | 'cols'>,
  transposed: boolean,
  expert: number,
): Float32Array | undefined {
  const matrix = transposed ? metric?.rows : metric?.columns;
  if (!matrix || matrix.form === 'diagonal') return undefined;
  const size = transposed ? rows : cols;
  return matrix.form === 'full' ? held(matrix, expert, size * size) : lowRankGram(matrix, expert, size);
}

/** The memory of a fit whose weights are rounded with error feedback, one expert at a time. Without a covariance of inputs there is none. */
export function withFeedback(
  fit: FitMemory,
  { rows, cols }: Pick<GroupShape, 'rows' | 'cols'>,
  transposed: boolean,
  metric: MetricForm | undefined,
): FitMemory {
  const matrix = transposed ? metric?.rows : metric?.columns;
  if (!matrix || matrix.form === 'diagonal') return fit;
  const order = transposed ? rows : cols;
  const lowRank = matrix.form === 'low-rank' ? 8 * order ** 2 : 0;
  return { ...fit, batch: fit.batch + roundingBytes((rows * cols) / order, order) + lowRank };
}

function held(matrix: MetricMatrix, expert: number, numbers: number): Float32Array {
  const number = matrix.shared ? 0 : expert;
  const known = matrix.view?.(number);
  if (known) return known;
  const values = new Float32Array(numbers);
  matrix.read(number, values);
  return values;
}

/** c·I + ZZᵀ */
function lowRankGram(matrix: MetricMatrix, expert: number, size: number): Float32Array {
  const rank = matrix.rank ?? 0;
  const values = held(matrix, expert, size * rank + 1);
  const Z = { data: Float64Array.from(values.subarray(0, size * rank)), at: 0, stride: rank };
  const sum = new Float64Array(size * size);
  const c = values[size * rank] as number;
  for (let i = 0; i < size; i++) sum[i * size + i] = c;
  addProduct({ data: sum, at: 0, stride: size }, 1, Z, Z, [size, size, rank]);
  return Float32Array.from(sum);
}
