/** Scales that the elements of a block share, and the loops over the blocks of a matrix. */
import { z } from 'zod';
import { decodeFloats, encodeFloats } from '../codec.js';
import { type FloatDtype, floatBytes } from '../dtype.js';
import { float8Values } from '../float8.js';
import { multiplyCodes, multiplyNibbles, type NibbleTables } from '../multiply-codes.js';
import { E4M3_GRID } from './code-grid.js';
import { checkWhole, type Window } from './decoder.js';

export const SCALE_DTYPES = ['F32', 'F16', 'BF16', 'F8_E8M0', 'F8_E4M3'] as const;
export const scaleDtype = z.enum(SCALE_DTYPES);
export type ScaleDtype = (typeof SCALE_DTYPES)[number];

/** One scale for each block of rows × cols. The scales of a matrix (R, C) are (⌈R / rows⌉, ⌈C / cols⌉), row-major. */
export interface BlockScales {
  readonly dtype: ScaleDtype;
  readonly rows: number;
  readonly cols: number;
  /** Whether scales that are written must be powers of two, whatever their dtype. Any scale is read. */
  readonly powersOfTwo?: boolean | undefined;
}

const isFloat8 = (dtype: ScaleDtype): dtype is Exclude<ScaleDtype, FloatDtype> =>
  dtype === 'F8_E8M0' || dtype === 'F8_E4M3';

/** The bytes of one scale. */
export const scaleBytes = (dtype: ScaleDtype): number => (isFloat8(dtype) ? 1 : floatBytes(dtype));

/** The bytes of all scales of a matrix. */
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

/** The smallest positive number of each dtype. */
const SMALLEST_SCALE: Readonly<Record<ScaleDtype, number>> = {
  F32: 2 ** -149,
  F16: 2 ** -24,
  BF16: 2 ** -133,
  F8_E8M0: 2 ** -127,
  F8_E4M3: 2 ** -9,
};

/**
 * Encodes scales, rounded to the nearest number of their dtype. A scale in e8m0 is rounded up to a power of two, so that the largest
 * code stays in its range. A positive scale never becomes 0: no code could be divided by it. A scale that is too large becomes
 * infinite or NaN.
 *
 * @param scales at least 0, and above 0 for e8m0, which has no 0
 */
export function encodeScales(dtype: ScaleDtype, scales: Float32Array): Uint8Array<ArrayBuffer> {
  const least = SMALLEST_SCALE[dtype];
  const raised = scales.map((scale) => (scale > 0 && scale < least ? least : scale));
  if (!isFloat8(dtype)) return encodeFloats(dtype, raised);
  const codes = new Uint8Array(raised.length);
  if (dtype === 'F8_E4M3') {
    E4M3_GRID.encode(raised, 0, raised.length, 1, codes, 0);
    raised.forEach((scale, i) => {
      if (!(scale <= E4M3_GRID.largest)) codes[i] = NOT_A_NUMBER.F8_E4M3;
    });
    return codes;
  }
  const patterns = new Uint32Array(raised.buffer);
  patterns.forEach((bits, i) => {
    const exponent = (bits >>> 23) & 0xff;
    const fraction = bits & 0x7fffff;
    // Exponent 0 is subnormal: fraction · 2^−149, and code 0 means 2^−127.
    const exact = exponent === 0 ? fraction <= 2 ** 22 : fraction === 0;
    codes[i] = Math.min(exponent + (exact ? 0 : 1), NOT_A_NUMBER.F8_E8M0);
  });
  return codes;
}

/** The least powers of two that are not below the scales. Above the largest f32 power of two it is infinite; 0 stays 0. */
export function powersOfTwo(scales: Float32Array): Float32Array {
  const powers = scales.slice();
  const patterns = new Uint32Array(powers.buffer);
  patterns.forEach((bits, i) => {
    const exponent = (bits >>> 23) & 0xff;
    const fraction = bits & 0x7fffff;
    if (exponent === 0xff || fraction === 0) return;
    // Below 2^−126 the fraction alone is the number, in units of 2^−149.
    const subnormal = 2 ** (32 - Math.clz32(fraction - 1));
    patterns[i] = exponent === 0 ? subnormal : (exponent + 1) << 23;
  });
  return powers;
}

const NOT_A_NUMBER = { F8_E4M3: 0x7f, F8_E8M0: 0xff } as const;

/** The input that the loops below have in common. */
export interface BlockWindow {
  readonly blocks: BlockScales;
  readonly cols: number;
  readonly window: Window;
  /** The scales of the whole matrix. */
  readonly scales: Uint8Array;
  /** Bytes of a row of data. */
  readonly stride: number;
  /** Replaces each scale before it is used. The result is rounded to f32. */
  readonly outer?: (scale: number) => number;
}

/** Decodes 8-bit codes. It goes row by row, not block by block, to read and write memory in order. */
export function multiplyCodeBlocks(
  values: Float32Array,
  it: BlockWindow,
  data: Uint8Array,
  target: Float32Array,
): void {
  const { rows, columns } = it.window;
  const { cols: width } = it.blocks;
  const last = columns.first + columns.count;
  const { factors, firstOf } = blockFactors(it);
  for (let row = 0; row < rows.count; row++) {
    const block = firstOf(row);
    const [from, to] = [row * it.stride, row * columns.count - columns.first];
    for (let i = Math.floor(columns.first / width); i * width < last; i++) {
      const start = Math.max(i * width, columns.first);
      const end = Math.min((i + 1) * width, last);
      multiplyCodes(values, factors[block + i] as number, data, from + start, target, to + start, end - start);
    }
  }
}

/**
 * Decodes 4-bit codes, also row by row. It has the loop of `multiplyCodeBlocks` again: a shared loop that calls a function for each
 * block takes 15 % longer with groups of 32, and 25 % with groups of 16.
 */
export function multiplyNibbleBlocks(
  { lower, upper }: NibbleTables,
  it: BlockWindow,
  data: Uint8Array,
  target: Float32Array,
): void {
  const { rows, columns } = it.window;
  const { cols: width } = it.blocks;
  const last = columns.first + columns.count;
  const { factors, firstOf } = blockFactors(it);
  for (let row = 0; row < rows.count; row++) {
    const block = firstOf(row);
    const [from, to] = [row * it.stride, row * columns.count - columns.first];
    for (let i = Math.floor(columns.first / width); i * width < last; i++) {
      const start = Math.max(i * width, columns.first);
      const end = Math.min((i + 1) * width, last);
      multiplyNibbles(lower, upper, factors[block + i] as number, data, from, start, end, target, to);
    }
  }
}

/** The scales that a window needs, and for each row of the window the index of its first scale. */
function blockFactors({ blocks, cols, window: { rows }, scales, outer }: BlockWindow): {
  factors: Float32Array;
  firstOf: (row: number) => number;
} {
  checkWhole('rows of a block', blocks.rows, 1);
  checkWhole('cols of a block', blocks.cols, 1);
  const across = Math.ceil(cols / blocks.cols);
  const first = Math.floor(rows.first / blocks.rows);
  const end = Math.ceil((rows.first + rows.count) / blocks.rows);
  const factors = scalesOfBlockRows(blocks.dtype, scales, across, first, end);
  return {
    factors: outer ? factors.map(outer) : factors,
    firstOf: (row) => (Math.floor((rows.first + row) / blocks.rows) - first) * across,
  };
}

/** Decodes the scales of some rows of blocks. With one scale for each channel, decoding all would cost more than the rows. */
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
