/** Rounds a matrix to codes with scales such that its error in a metric is small: GPTQ's rule, in f64. */
import { BLOCK, createFeedback, type ErrorFeedback } from './error-feedback.js';
import { addProduct, type Block } from './multiply-transposed.js';
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
  /** G, (cols, cols) row-major, in which the error E counts tr(E·G·Eᵀ), or what `createFeedback` made of it. */
  readonly gram: Float32Array | ErrorFeedback;
  readonly grid: CodeGrid;
  /** Columns of a row that share a scale. The last group of a row may be shorter. */
  readonly scaleGroup: number;
  /** Rows that share a scale; 1 if undefined. */
  readonly scaleRows?: number | undefined;
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

/** A scale puts the largest value at one of these shares of the largest code; a smaller scale clips it, and rounds others finer. */
const SHARES = Array.from({ length: 11 }, (_, i) => 0.5 + 0.05 * i);

/**
 * Rounds columns in order. The error of each is fed forward to those after it (error-feedback.ts). A group's scales are searched when
 * its first column is reached, for the values that its columns would have if they were not rounded. Deterministic.
 */
export function roundWithFeedback({ gram, ...rounding }: FeedbackRounding): RoundedMatrix {
  const { values, grid, scaleGroup, scaleRows = 1 } = rounding;
  const { size: cols, transposed } = feedbackOf(gram);
  const rows = values.length / cols;
  if (!Number.isInteger(rows)) throw new RangeError(`${values.length} values are no rows of ${cols}`);
  const groups = Math.ceil(cols / scaleGroup);
  const result = new Float32Array(values.length);
  const scales = new Float32Array(Math.ceil(rows / scaleRows) * groups);
  /** W − Z of the columns that are rounded. */
  const errors = new Float64Array(values.length);
  /** Σ (w_i − z_i)·U_ij over the columns i that are rounded, for the columns j of the group. */
  const width = Math.min(scaleGroup, cols);
  const fed = new Float64Array(rows * width);
  const feed = (from: number, to: number, start: number, end: number, groupStart: number): void => {
    if (to === from) return;
    const target: Block = { data: fed, at: start - groupStart, stride: width };
    const x = { data: errors, at: from, stride: cols };
    const y = { data: transposed, at: start * cols + from, stride: cols };
    addProduct(target, 1, x, y, [rows, end - start, to - from]);
  };
  const wanted = new Float64Array(Math.min(scaleRows, rows) * width);
  for (let group = 0; group < groups; group++) {
    const first = group * scaleGroup;
    const last = Math.min(cols, first + scaleGroup);
    fed.fill(0);
    feed(0, first, first, last, first);
    for (let top = 0; top < rows; top += scaleRows) {
      const bottom = Math.min(rows, top + scaleRows);
      for (let row = top; row < bottom; row++) {
        const shifts = wanted.subarray((row - top) * width);
        shiftUnrounded(shifts, fed, row * width, transposed, cols, first, last);
        for (let j = first; j < last; j++)
          shifts[j - first] = (values[row * cols + j] as number) + (shifts[j - first] as number);
      }
      const count = bottom - top;
      scales[(top / scaleRows) * groups + group] = searchScale(wanted, width, count, last - first, rounding);
    }
    for (let start = first; start < last; start += BLOCK) {
      const end = Math.min(last, start + BLOCK);
      feed(first, start, start, end, first);
      for (let row = 0; row < rows; row++) {
        const at = row * cols;
        const scale = scales[Math.floor(row / scaleRows) * groups + group] as number;
        for (let j = start; j < end; j++) {
          const own = dot(errors, at + start, transposed, j * cols + start, j - start);
          const value = values[at + j] as number;
          const rounded = grid.round((value + (fed[row * width + j - first] as number) + own) / scale) * scale;
          result[at + j] = rounded;
          errors[at + j] = value - rounded;
        }
      }
    }
  }
  return { values: result, scales };
}

const feedbackOf = (gram: Float32Array | ErrorFeedback): ErrorFeedback =>
  'transposed' in gram ? gram : createFeedback(gram, Math.round(Math.sqrt(gram.length)));

/** How far the columns of a group move from W if they are not rounded: s_j = fed_j − Σ s_i·U_ij over the group's earlier columns. */
function shiftUnrounded(
  shifts: Float64Array,
  fed: Float64Array,
  fedAt: number,
  transposed: Float64Array,
  cols: number,
  first: number,
  last: number,
): void {
  for (let j = 0; j < last - first; j++)
    shifts[j] = (fed[fedAt + j] as number) - dot(shifts, 0, transposed, (first + j) * cols + first, j);
}

/** The scale with the least squared error, of those at `SHARES`. One that is too large for its dtype is infinite or NaN, as the values then are. */
function searchScale(
  values: Float64Array,
  stride: number,
  rows: number,
  cols: number,
  { grid, roundScale }: Pick<FeedbackRounding, 'grid' | 'roundScale'>,
): number {
  let largest = 0;
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < cols; j++) largest = Math.max(largest, Math.abs(values[i * stride + j] as number));
  let best = 1; // the scale of zeros
  if (largest === 0) return best;
  const whole = roundScale(largest / grid.largest);
  if (!Number.isFinite(whole)) return whole;
  let least = Number.POSITIVE_INFINITY;
  for (const share of SHARES) {
    const scale = roundScale((share * largest) / grid.largest);
    if (!(scale > 0)) continue;
    let error = 0;
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < cols; j++) {
        const value = values[i * stride + j] as number;
        error += (grid.round(value / scale) * scale - value) ** 2;
      }
    if (error < least) [best, least] = [scale, error];
  }
  return best;
}
