/** Rounds a matrix to codes with scales such that its error in a metric is small: GPTQ's rule, in f64. */
import { createFeedback, type ErrorFeedback } from './error-feedback.js';
import { addProduct } from './multiply-transposed.js';
import { refineRounding } from './refine-rounding.js';
import { dot } from './vectors.js';

/** The values that codes have, in units of their scale. */
export interface CodeGrid {
  /** The largest, to which the largest value of a scale group is scaled at most. */
  readonly largest: number;
  /** The nearest value of a code. */
  round(value: number): number;
}

/** A matrix to round, and how. */
export interface FeedbackRounding {
  /** W, (rows, cols) f32, row-major. */
  readonly values: Float32Array;
  /** G, (cols, cols) row-major, symmetric positive semidefinite, in which the error E counts tr(E·G·Eᵀ). */
  readonly gram: Float32Array;
  readonly grid: CodeGrid;
  /** Columns of a row that share a scale. The last group of a row may be shorter. */
  readonly scaleGroup: number;
  /** Rows that share a scale; 1 if undefined. */
  readonly scaleRows?: number | undefined;
  /** Whether scales may be negative, so that a grid with more codes below 0 than above has them on the side of the largest value. */
  readonly signedScales?: boolean | undefined;
  /** Scales to try, as shares of the one that puts the largest value at the last code; smaller ones clip it, and round others finer. */
  readonly shares: readonly number[];
  /** Whether single codes are changed at the end while that lowers the error (refine-rounding.ts); true if undefined. */
  readonly refine?: boolean | undefined;
  /** Rounds a scale to its dtype. */
  roundScale(scale: number): number;
}

/** A rounded matrix. */
export interface RoundedMatrix {
  /** Code · scale, (rows, cols) f32, row-major. */
  readonly values: Float32Array;
  /** (⌈rows / scaleRows⌉, ⌈cols / scaleGroup⌉) f32, row-major. */
  readonly scales: Float32Array;
}

/** The columns of a scale group, in the order in which they are rounded. */
interface Group {
  /** Its place in a row of scales. */
  readonly index: number;
  /** Its first column in the order of rounding, and the one after its last. */
  readonly first: number;
  readonly last: number;
}

/**
 * Rounds one column after another, and feeds the error of each forward to those after it (error-feedback.ts). Columns with a large
 * diagonal of G are rounded first, because later ones can make up for their errors; those of a scale group stay together. Each group
 * gets the scales with which its rounding, feedback included, leaves the least error. At the end single codes are changed while that
 * lowers the error. Deterministic.
 */
export function roundWithFeedback({ gram, ...rounding }: FeedbackRounding): RoundedMatrix {
  const { values, scaleGroup, scaleRows = 1 } = rounding;
  const cols = Math.round(Math.sqrt(gram.length));
  const rows = values.length / cols;
  if (!Number.isInteger(rows)) throw new RangeError(`${values.length} values are no rows of ${cols}`);
  const { order, groups } = roundingOrder(gram, cols, scaleGroup);
  const inOrder = permuted(gram, order);
  const feedback = createFeedback(inOrder, cols);
  const moved = new Float64Array(values.length);
  for (let at = 0; at < values.length; at += cols)
    for (let j = 0; j < cols; j++) moved[at + j] = values[at + (order[j] as number)] as number;

  const scales = new Float32Array(Math.ceil(rows / scaleRows) * groups.length);
  /** W − Z of the columns that are rounded. */
  const errors = new Float64Array(values.length);
  const width = Math.min(scaleGroup, cols);
  /** Σ (w_i − z_i)·U_ij over the columns i of earlier groups, for the columns j of a group. */
  const fed = new Float64Array(rows * width);
  const block = createBlock(Math.min(scaleRows, rows), width);
  for (const { index, first, last } of groups) {
    fed.fill(0);
    if (first > 0) {
      const x = { data: errors, at: 0, stride: cols };
      const y = { data: feedback.transposed, at: first * cols, stride: cols };
      addProduct({ data: fed, at: 0, stride: width }, 1, x, y, [rows, last - first, first]);
    }
    for (let top = 0; top < rows; top += scaleRows) {
      block.rows = Math.min(scaleRows, rows - top);
      block.cols = last - first;
      for (let i = 0; i < block.rows; i++) {
        const from = (top + i) * cols + first;
        block.values.set(moved.subarray(from, from + block.cols), i * width);
        block.fed.set(fed.subarray((top + i) * width, (top + i) * width + block.cols), i * width);
      }
      scales[(top / scaleRows) * groups.length + index] = roundBlock(block, first, feedback, rounding);
      for (let i = 0; i < block.rows; i++)
        for (let j = 0; j < block.cols; j++) {
          const at = (top + i) * cols + first + j;
          errors[at] = (moved[at] as number) - (block.rounded[i * width + j] as number);
        }
    }
  }
  if (rounding.refine ?? true) {
    const scaleOf = (row: number, j: number): number =>
      scales[Math.floor(row / scaleRows) * groups.length + Math.floor((order[j] as number) / scaleGroup)] as number;
    refineRounding({ values: moved, errors, gram: inOrder, scaleOf, round: rounding.grid.round });
  }
  const result = new Float32Array(values.length);
  for (let at = 0; at < values.length; at += cols)
    for (let j = 0; j < cols; j++)
      result[at + (order[j] as number)] = (moved[at + j] as number) - (errors[at + j] as number);
  return { values: result, scales };
}

/**
 * The bytes that the rounding of a matrix (rows, cols) takes: G as it is given, in the order of rounding, and twice its factor; the
 * matrix in that order, its errors, what they add to other columns, and the result.
 */
export const roundingBytes = (rows: number, cols: number): number => 28 * cols ** 2 + 28 * rows * cols;

/** Columns and groups by falling diagonals of G, groups by their means. Those that are alike keep their order. */
function roundingOrder(gram: Float32Array, cols: number, scaleGroup: number): { order: number[]; groups: Group[] } {
  const diagonal = (j: number): number => gram[j * (cols + 1)] as number;
  const byGroup = Array.from({ length: Math.ceil(cols / scaleGroup) }, (_, index) => {
    const first = index * scaleGroup;
    const columns = Array.from({ length: Math.min(scaleGroup, cols - first) }, (_, j) => first + j);
    const mean = columns.reduce((sum, j) => sum + diagonal(j), 0) / columns.length;
    return { index, mean, columns: columns.sort((a, b) => diagonal(b) - diagonal(a) || a - b) };
  }).sort((a, b) => b.mean - a.mean || a.index - b.index);
  let first = 0;
  const groups = byGroup.map(({ index, columns }) => {
    const last = first + columns.length;
    const group = { index, first, last };
    first = last;
    return group;
  });
  return { order: byGroup.flatMap(({ columns }) => columns), groups };
}

function permuted(gram: Float32Array, order: readonly number[]): Float64Array {
  const n = order.length;
  const result = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    const row = (order[i] as number) * n;
    for (let j = 0; j < n; j++) result[i * n + j] = gram[row + (order[j] as number)] as number;
  }
  return result;
}

/** Values that share a scale, (rows, cols) of row length `stride`. */
interface Block {
  rows: number;
  cols: number;
  readonly stride: number;
  /** W */
  readonly values: Float64Array;
  /** What the errors of earlier groups add. */
  readonly fed: Float64Array;
  rounded: Float64Array;
  /** Rounded with another scale, to try that. */
  trial: Float64Array;
  /** W − Z of one row. */
  readonly errors: Float64Array;
}

function createBlock(rows: number, stride: number): Block {
  const create = (): Float64Array => new Float64Array(rows * stride);
  const arrays = { values: create(), fed: create(), rounded: create(), trial: create() };
  return { rows, cols: stride, stride, ...arrays, errors: new Float64Array(stride) };
}

/**
 * Rounds the values that share a scale, with the scale that leaves the least error. Returns that scale. It is not finite if the values
 * are too large for the dtype of scales.
 */
function roundBlock(
  block: Block,
  first: number,
  feedback: ErrorFeedback,
  { grid, shares, roundScale, signedScales }: Omit<FeedbackRounding, 'gram'>,
): number {
  let best = 1; // the scale of zeros
  let least = Number.POSITIVE_INFINITY;
  block.rounded.fill(0);
  for (const candidate of candidates(block, first, feedback, grid, shares, signedScales)) {
    const scale = roundScale(candidate);
    if (scale === 0) continue;
    if (!Number.isFinite(scale)) return scale; // the encoder refuses it
    const error = roundTrial(block, first, feedback, grid, scale, least);
    if (!(error < least)) continue;
    [best, least] = [scale, error];
    [block.rounded, block.trial] = [block.trial, block.rounded];
  }
  return best;
}

/** Rounds to `block.trial`. Returns the error; at least `limit`, and not the whole of it, if it reaches that. */
function roundTrial(
  { rows, cols, stride, values, fed, trial, errors }: Block,
  first: number,
  { size, transposed, weights }: ErrorFeedback,
  grid: CodeGrid,
  scale: number,
  limit: number,
): number {
  let error = 0;
  for (let row = 0; row < rows; row++)
    for (let j = 0; j < cols; j++) {
      const at = row * stride + j;
      const value = values[at] as number;
      const wanted = value + (fed[at] as number) + dot(errors, 0, transposed, (first + j) * size + first, j);
      const rounded = grid.round(wanted / scale) * scale;
      error += (weights[first + j] as number) * (wanted - rounded) ** 2;
      if (error >= limit) return error;
      trial[at] = rounded;
      errors[j] = value - rounded;
    }
  return error;
}

/** The scales to try, before they are rounded, by the largest of the values that the columns would have if they were not rounded. */
function candidates(
  { rows, cols, stride, values, fed, errors }: Block,
  first: number,
  { size, transposed }: ErrorFeedback,
  { largest, round }: CodeGrid,
  shares: readonly number[],
  signed = false,
): number[] {
  let extreme = 0;
  for (let row = 0; row < rows; row++)
    for (let j = 0; j < cols; j++) {
      const at = row * stride + j;
      const shift = (fed[at] as number) + dot(errors, 0, transposed, (first + j) * size + first, j);
      errors[j] = -shift; // W less what it would be
      const wanted = (values[at] as number) + shift;
      if (Math.abs(wanted) > Math.abs(extreme)) extreme = wanted;
    }
  const lowest = round(Number.NEGATIVE_INFINITY);
  const scales = [Math.abs(extreme) / largest, ...(signed && -lowest > largest ? [extreme / lowest] : [])];
  return scales.flatMap((scale) => shares.map((share) => share * scale));
}
