/** Scales that blocks of a matrix share, and the loop over those blocks. */
import { z } from 'zod';
import { decodeFloats } from '../codec.js';
import { type FloatDtype, floatBytes } from '../dtype.js';
import { float8Values } from '../float8.js';
import { multiplyCodes } from '../multiply-codes.js';
import { checkWhole, type Window } from './decoder.js';

export const SCALE_DTYPES = ['F32', 'F16', 'BF16', 'F8_E8M0', 'F8_E4M3'] as const;
export const scaleDtype = z.enum(SCALE_DTYPES);
export type ScaleDtype = (typeof SCALE_DTYPES)[number];

/** One scale for each block of rows × cols, (⌈R / rows⌉, ⌈C / cols⌉), row-major. */
export interface BlockScales {
  readonly dtype: ScaleDtype;
  readonly rows: number;
  readonly cols: number;
}

const isFloat8 = (dtype: ScaleDtype): dtype is Exclude<ScaleDtype, FloatDtype> =>
  dtype === 'F8_E8M0' || dtype === 'F8_E4M3';

/** Bytes of one scale. */
export const scaleBytes = (dtype: ScaleDtype): number => (isFloat8(dtype) ? 1 : floatBytes(dtype));

/** Bytes of all scales of a matrix. */
export function blockScaleBytes(blocks: BlockScales, rows: number, cols: number): number {
  checkWhole('rows of a block', blocks.rows, 1);
  checkWhole('cols of a block', blocks.cols, 1);
  return Math.ceil(rows / blocks.rows) * Math.ceil(cols / blocks.cols) * scaleBytes(blocks.dtype);
}

export function decodeScales(dtype: ScaleDtype, bytes: Uint8Array): Float32Array {
  const decoded = new Float32Array(bytes.length / scaleBytes(dtype));
  if (isFloat8(dtype)) multiplyCodes(float8Values(dtype), 1, bytes, 0, decoded, 0, bytes.length);
  else decodeFloats(dtype, bytes, decoded);
  return decoded;
}

/** Multiplies the columns `start` … `end` of a row by a scale. */
export type MultiplyRun = (row: number, scale: number, start: number, end: number) => void;

/**
 * Calls `multiply` for each run of columns in a row that shares a scale.
 * @param scales those of the whole matrix
 * @param outer f32, applied to each scale before it is used
 */
export function forEachScale(
  blocks: BlockScales,
  cols: number,
  { rows, columns }: Window,
  scales: Uint8Array,
  multiply: MultiplyRun,
  outer: (scale: number) => number = (scale) => scale,
): void {
  checkWhole('rows of a block', blocks.rows, 1);
  checkWhole('cols of a block', blocks.cols, 1);
  const across = Math.ceil(cols / blocks.cols);
  const firstBlock = Math.floor(rows.first / blocks.rows);
  const endBlock = Math.ceil((rows.first + rows.count) / blocks.rows);
  const factors = scalesOfBlockRows(blocks.dtype, scales, across, firstBlock, endBlock).map(outer);
  const last = columns.first + columns.count;
  for (let row = 0; row < rows.count; row++) {
    const block = (Math.floor((rows.first + row) / blocks.rows) - firstBlock) * across;
    // Rows one by one, not blocks: memory is then read and written in order.
    for (let i = Math.floor(columns.first / blocks.cols); i * blocks.cols < last; i++) {
      const start = Math.max(i * blocks.cols, columns.first);
      multiply(row, factors[block + i] as number, start, Math.min((i + 1) * blocks.cols, last));
    }
  }
}

/** The scales of some rows of blocks. Only those: with a scale for each channel, all would cost more than the rows. */
function scalesOfBlockRows(
  dtype: ScaleDtype,
  scales: Uint8Array,
  across: number,
  first: number,
  end: number,
): Float32Array {
  const bytesAcross = across * scaleBytes(dtype);
  if (scales.length % bytesAcross !== 0 || scales.length < end * bytesAcross) {
    throw new RangeError(
      `${scales.length} bytes of scales do not make ${end} or more rows of blocks of ${bytesAcross} bytes`,
    );
  }
  return decodeScales(dtype, scales.subarray(first * bytesAcross, end * bytesAcross));
}
