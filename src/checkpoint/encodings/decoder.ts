/** The interface of an encoding. A new encoding needs a file here and an entry in the registry of ../encoding.ts. */
import { z } from 'zod';

export interface Decoder<E> {
  /** The encoding in words: "F8_E4M3 in 128 × 128 blocks". */
  describe(encoding: E): string;
  storedBytes(encoding: E, rows: number, cols: number): StoredBytes;
  /** The part of the data that is needed to decode some rows. */
  rowSpan(encoding: E, cols: number, rows: Range): Span;
  /**
   * Decodes some columns of some rows.
   *
   * @param data the bytes of `rowSpan`, at any alignment
   * @param scales all bytes that follow the data of the whole matrix; at any alignment
   * @param target (rows.count, columns.count) f32
   */
  decode(encoding: E, cols: number, window: Window, data: Uint8Array, scales: Uint8Array, target: Float32Array): void;
  /** A fault in the values of a matrix's scales, which shows only when they are read. Absent if there can be none. */
  fault?(encoding: E, rows: number, cols: number, scales: Uint8Array): string | undefined;
}

/** The bytes of a stored matrix. */
export interface StoredBytes {
  readonly data: number;
  /** Scales, zero points and all else that is needed to decode the data. */
  readonly scales: number;
}

/** A range of rows or columns. */
export interface Range {
  readonly first: number;
  readonly count: number;
}

export interface Window {
  readonly rows: Range;
  readonly columns: Range;
}

/** Bytes from `start` up to, but not including, `end`. */
export interface Span {
  readonly start: number;
  readonly end: number;
}

/** The span of some rows, if rows follow each other and each is `stride` bytes long. */
export const spanOfRows = (stride: number, { first, count }: Range): Span => ({
  start: first * stride,
  end: (first + count) * stride,
});

/** A size in an encoding. The cap is far above any model's sizes. It keeps the byte counts computed from them exact. */
export const size = z
  .int()
  .positive()
  .max(2 ** 24);

/** Checks the `count` indices of groups, i32, that are the last bytes of the scales. Returns the fault, if there is one. */
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
