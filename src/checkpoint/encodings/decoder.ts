/** The interface of an encoding. A new one touches a file here and the registry in ../encoding.ts. */
import { z } from 'zod';

export interface Decoder<E> {
  /** For people: "F8_E4M3 in 128 × 128 blocks". */
  describe(encoding: E): string;
  storedBytes(encoding: E, rows: number, cols: number): StoredBytes;
  /** Where in the data some rows lie. */
  rowSpan(encoding: E, cols: number, rows: Range): Span;
  /**
   * Decodes some columns of some rows.
   *
   * @param data the bytes of `rowSpan`, at any alignment
   * @param scales everything that follows the data, whole; at any alignment
   * @param target (rows.count, columns.count) f32
   */
  decode(encoding: E, cols: number, window: Window, data: Uint8Array, scales: Uint8Array, target: Float32Array): void;
  /** What is wrong with the scales of a matrix, where that shows only when they are read. */
  fault?(encoding: E, rows: number, cols: number, scales: Uint8Array): string | undefined;
}

/** Bytes of a stored matrix. */
export interface StoredBytes {
  readonly data: number;
  /** Scales, zero points and whatever else is needed to decode the data. */
  readonly scales: number;
}

/** Rows or columns. */
export interface Range {
  readonly first: number;
  readonly count: number;
}

export interface Window {
  readonly rows: Range;
  readonly columns: Range;
}

/** Bytes from `start` up to `end`. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/** The span of rows that lie one after another, each `stride` bytes long. */
export const spanOfRows = (stride: number, { first, count }: Range): Span => ({
  start: first * stride,
  end: (first + count) * stride,
});

/** A size in an encoding. The cap is far above any model's: it keeps sizes computed from several exact. */
export const size = z
  .int()
  .positive()
  .max(2 ** 24);

/** Indices of groups, i32, that are the last bytes of the scales. */
export function groupFault(count: number, groups: number, scales: Uint8Array): string | undefined {
  const bytes = new Uint8Array(scales.subarray(scales.length - 4 * count));
  const wrong = new Int32Array(bytes.buffer).find((group) => group < 0 || group >= groups);
  return wrong === undefined ? undefined : `its g_idx names group ${wrong}, it has ${groups}`;
}

export function checkWhole(what: string, value: number, least: number): void {
  if (!Number.isSafeInteger(value) || value < least) {
    throw new RangeError(`${what} is ${value}, which is not a whole number of at least ${least}`);
  }
}

export function checkLength(what: string, length: number, expected: number): void {
  if (length !== expected) throw new RangeError(`${length} ${what}, where the rows have ${expected}`);
}
