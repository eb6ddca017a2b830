/** Decodes matrices of the source as whole, in a dtype of the output. */
import { allFinite, encodeFloats } from '../../src/checkpoint/codec.js';
import { type FloatDtype, floatBytes } from '../../src/checkpoint/dtype.js';
import { openMatrix, type StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type Slice, scatter } from '../../src/conversion/slices.js';
import { NonFiniteWeightError, OverflowError } from '../../src/errors.js';
import { type RangeReader, READ_BYTES } from '../../src/sources/files.js';

/** Decoded rows of a matrix, starting at row `first`: `values` is (rows, cols) f32. The next part reuses the same memory. */
export interface DecodedRows {
  readonly first: number;
  readonly values: Float32Array;
}

/** Decodes a matrix in parts of about 8 MiB. Its scales are small and are read whole. */
export async function* decodedRows(matrix: StoredMatrix, reader: RangeReader): AsyncGenerator<DecodedRows> {
  const { rows, cols } = matrix;
  const opened = await openMatrix(reader, matrix);
  const rowsAtOnce = Math.max(1, Math.floor(READ_BYTES / (4 * cols)));
  const values = new Float32Array(Math.min(rows, rowsAtOnce) * cols);
  for (let first = 0; first < rows; first += rowsAtOnce) {
    const count = Math.min(rowsAtOnce, rows - first);
    const part = values.subarray(0, count * cols);
    await opened.decode({ first, count }, part);
    yield { first, values: part };
  }
}

/** Counts infinities and NaNs. */
export const countNonFinite = (values: Float32Array): number =>
  values.reduce((sum, value) => sum + (Number.isFinite(value) ? 0 : 1), 0);

/**
 * Encodes decoded rows of a matrix. Throws `NonFiniteWeightError`, and `OverflowError` if a weight is too large for `dtype`.
 * @param target receives the bytes, if it is given
 */
export function encodeRows(
  { name, data: { file } }: StoredMatrix,
  values: Float32Array,
  dtype: FloatDtype,
  target?: Uint8Array,
): Uint8Array {
  const data = encodeFloats(dtype, values, target);
  if (allFinite(dtype, data)) return data;
  const bad = countNonFinite(values);
  throw bad ? new NonFiniteWeightError(name, file, bad) : new OverflowError(name, dtype);
}

/** Reads a matrix of the source and encodes it in `dtype`, row-major. Throws as `encodeRows` does. */
export async function encodedMatrix(matrix: StoredMatrix, dtype: FloatDtype, reader: RangeReader): Promise<Uint8Array> {
  const rowBytes = matrix.cols * floatBytes(dtype);
  const bytes = new Uint8Array(matrix.rows * rowBytes);
  for await (const { first, values } of decodedRows(matrix, reader))
    bytes.set(encodeRows(matrix, values, dtype), first * rowBytes);
  return bytes;
}

/** A new buffer for a slice, with these of its matrices as they are in the source. Throws as `encodeRows` does. */
export async function assembleSlice(
  slice: Slice,
  matrices: readonly StoredMatrix[],
  dtype: FloatDtype,
  reader: RangeReader,
): Promise<Uint8Array> {
  const size = floatBytes(dtype);
  const target = new Uint8Array(slice.size * size);
  for (const matrix of matrices)
    for await (const { first, values } of decodedRows(matrix, reader)) {
      const rows = { first, count: values.length / matrix.cols };
      scatter({ slice, matrix }, rows, size, encodeRows(matrix, values, dtype), target);
    }
  return target;
}
