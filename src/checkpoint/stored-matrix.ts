/** A matrix of a checkpoint: the place of its bytes and their encoding. */
import { QuantisedShapeError, UnsupportedDtypeError } from '../errors.js';
import type { ByteRange, RangeReader } from '../sources/files.js';
import { isFloatDtype } from './dtype.js';
import { decodeRows, type Encoding, storedBytes } from './encoding.js';
import type { TensorInfo } from './header.js';

/** One matrix. It may be a part of a tensor, or data and scales in several tensors. */
export interface StoredMatrix {
  /** The matrix's name if it were a tensor of its own, not quantised, e.g. `model.layers.0.mlp.experts.3.up_proj.weight`. */
  readonly name: string;
  /** Size as stored, row-major. */
  readonly rows: number;
  readonly cols: number;
  readonly encoding: Encoding;
  readonly data: ByteRange;
  /** Scales of a quantised matrix. They may lie in another shard. */
  readonly scales?: ByteRange;
  /** A stored copy of the shape (compressed-tensors' `weight_shape`). It is compared when the data is read. */
  readonly declaredShape?: ByteRange;
  /** The matrix's place in a checkpoint with the source's layout: a tensor, and the element at which it begins. */
  readonly place: { readonly tensor: string; readonly element: number };
}

/** A tensor of floats as a matrix whose rows are the last axis. Throws an `UnsupportedDtypeError`. */
export function plainMatrix({ name, file, dtype, shape, start, end }: TensorInfo): StoredMatrix {
  if (!isFloatDtype(dtype)) throw new UnsupportedDtypeError(name, file, dtype);
  const cols = shape.at(-1) ?? 1;
  const rows = shape.slice(0, -1).reduce((product, size) => product * size, 1);
  const place = { tensor: name, element: 0 };
  return { name, rows, cols, encoding: { kind: 'float', dtype }, data: { file, start, end }, place };
}

/** Input of `decodeMatrix`. */
export interface MatrixFormat extends Pick<StoredMatrix, 'rows' | 'cols' | 'encoding'> {
  /** Whether to return the transpose, (cols, rows). */
  readonly transposed: boolean;
}

/** Number of bytes that `readMatrix` returns. */
export function matrixBytes({ encoding, rows, cols }: Pick<MatrixFormat, 'rows' | 'cols' | 'encoding'>): number {
  const { data, scales } = storedBytes(encoding, rows, cols);
  return data + scales;
}

/** Reads the data and then the scales into one new buffer. Throws a `ReadError` or a `QuantisedShapeError`. */
export async function readMatrix(reader: RangeReader, matrix: StoredMatrix): Promise<Uint8Array<ArrayBuffer>> {
  const { data, scales } = matrix;
  const bytes = new Uint8Array(matrixBytes(matrix));
  const size = data.end - data.start;
  await reader.read(data.file, data.start, bytes.subarray(0, size));
  if (scales) await reader.read(scales.file, scales.start, bytes.subarray(size));
  await checkDeclaredShape(reader, matrix);
  return bytes;
}

/** Compares the stored copy of the shape, if there is one. Throws a `QuantisedShapeError` if it differs. */
export async function checkDeclaredShape(
  reader: RangeReader,
  { name, rows, cols, declaredShape }: StoredMatrix,
): Promise<void> {
  if (!declaredShape) return;
  const bytes = await reader.readRange(declaredShape);
  const view = new DataView(bytes.buffer);
  const size = bytes.byteLength / 2; // two integers, of 4 or 8 bytes
  const at = (offset: number): number =>
    size === 8 ? Number(view.getBigInt64(offset, true)) : view.getInt32(offset, true);
  const declared = [at(0), at(size)];
  if (declared[0] !== rows || declared[1] !== cols)
    throw new QuantisedShapeError(
      name,
      declaredShape.file,
      `its shape is stored as [${declared}], its data is [${rows},${cols}]`,
    );
}

/** Decodes the bytes of `readMatrix` into `target`, (rows, cols) or, if transposed, (cols, rows). */
export function decodeMatrix(
  { encoding, rows, cols, transposed }: MatrixFormat,
  bytes: Uint8Array,
  target: Float32Array,
): void {
  const size = storedBytes(encoding, rows, cols).data;
  const values = transposed ? new Float32Array(rows * cols) : target;
  decodeRows(encoding, cols, { first: 0, count: rows }, bytes.subarray(0, size), bytes.subarray(size), values);
  if (transposed) transpose(values, rows, cols, target);
}

/** Stored weights, oriented as they are factorised: the same array unless they are transposed. */
export const asFactorised = ({ rows, cols, transposed }: MatrixFormat, stored: Float32Array): Float32Array =>
  transposed ? turned(stored, rows, cols) : stored;

/** Factorised weights, oriented as they are stored: the same array unless they are transposed. */
export const asStored = ({ rows, cols, transposed }: MatrixFormat, factorised: Float32Array): Float32Array =>
  transposed ? turned(factorised, cols, rows) : factorised;

function turned(source: Float32Array, rows: number, cols: number): Float32Array {
  const target = new Float32Array(source.length);
  transpose(source, rows, cols, target);
  return target;
}

/** Transposes (rows, cols) to (cols, rows), in tiles that fit the CPU's cache. */
export function transpose(source: Float32Array, rows: number, cols: number, target: Float32Array): void {
  const tile = 32;
  for (let i0 = 0; i0 < rows; i0 += tile) {
    for (let j0 = 0; j0 < cols; j0 += tile) {
      const [i1, j1] = [Math.min(rows, i0 + tile), Math.min(cols, j0 + tile)];
      for (let i = i0; i < i1; i++) for (let j = j0; j < j1; j++) target[j * rows + i] = source[i * cols + j] as number;
    }
  }
}
