/** A matrix of a checkpoint: the place of its bytes and their encoding. */
import { QuantisedShapeError, UnsupportedDtypeError } from '../errors.js';
import type { ByteRange, RangeReader } from '../sources/files.js';
import { isFloatDtype } from './dtype.js';
import { decodeRows, type Encoding, rowSpan, scaleFault, storedBytes } from './encoding.js';
import type { Range } from './encodings/decoder.js';
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
  /** The parts that its encoding needs after the scales: zero points, indices of groups, or a scale of the whole matrix. */
  readonly besides?: readonly ByteRange[];
  /** A stored copy of its shape (compressed-tensors' `weight_shape`), to be compared when the data is read. */
  readonly declaredShape?: ByteRange;
  readonly place: MatrixPlace;
}

/** The place of a matrix in a checkpoint with the source's layout. */
export interface MatrixPlace {
  readonly tensor: string;
  /** The element of that tensor at which the matrix begins. */
  readonly element: number;
  /** The elements from one row to the next and from one column to the next. If undefined, it is row-major without gaps. */
  readonly steps?: { readonly row: number; readonly column: number };
}

/** A tensor of floats as a matrix whose rows are the last axis. Throws an `UnsupportedDtypeError`. */
export function plainMatrix({ name, file, dtype, shape, start, end }: TensorInfo): StoredMatrix {
  if (!isFloatDtype(dtype)) throw new UnsupportedDtypeError(name, file, dtype);
  const cols = shape.at(-1) ?? 1;
  const rows = shape.slice(0, -1).reduce((product, size) => product * size, 1);
  const place = { tensor: name, element: 0 };
  return { name, rows, cols, encoding: { kind: 'float', dtype }, data: { file, start, end }, place };
}

/** The size of matrices as stored, and the orientation in which they are used. */
export interface MatrixShape extends Pick<StoredMatrix, 'rows' | 'cols'> {
  /** Whether the transpose is used, (cols, rows). */
  readonly transposed: boolean;
}

/** Input of `decodeMatrix`. */
export interface MatrixFormat extends MatrixShape {
  readonly encoding: Encoding;
}

/** Number of bytes that `readMatrix` returns. */
export function matrixBytes({ encoding, rows, cols }: Pick<MatrixFormat, 'rows' | 'cols' | 'encoding'>): number {
  const { data, scales } = storedBytes(encoding, rows, cols);
  return data + scales;
}

/** Reads the data, the scales and the other parts of a matrix into one new buffer, in this order. */
export async function readMatrix(reader: RangeReader, matrix: StoredMatrix): Promise<Uint8Array<ArrayBuffer>> {
  const { data } = matrix;
  const bytes = new Uint8Array(matrixBytes(matrix));
  const size = data.end - data.start;
  await reader.read(data.file, data.start, bytes.subarray(0, size));
  await fillScales(reader, matrix, bytes.subarray(size));
  return bytes;
}

/** Reads the scales and other parts that `decodeRows` needs, for the whole matrix. Empty for plain floats. */
export async function readScales(reader: RangeReader, matrix: StoredMatrix): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(storedBytes(matrix.encoding, matrix.rows, matrix.cols).scales);
  await fillScales(reader, matrix, bytes);
  return bytes;
}

/** Reads the scales. Throws `QuantisedShapeError` if they or a stored copy of the matrix's shape do not fit the data. */
async function fillScales(reader: RangeReader, matrix: StoredMatrix, target: Uint8Array<ArrayBuffer>): Promise<void> {
  const { name, rows, cols, encoding, scales, besides = [] } = matrix;
  let done = 0;
  for (const { file, start, end } of scales ? [scales, ...besides] : []) {
    await reader.read(file, start, target.subarray(done, done + end - start));
    done += end - start;
  }
  const fault = scaleFault(encoding, rows, cols, target);
  if (fault) throw new QuantisedShapeError(name, matrix.data.file, fault);
  await checkDeclaredShape(reader, matrix);
}

/** A matrix whose rows can be read and decoded in parts. */
export interface OpenMatrix {
  /** @param target (rows.count, cols) f32 */
  decode(rows: Range, target: Float32Array): Promise<void>;
}

/**
 * Reads the scales, so that rows can be decoded. If rows do not follow each other in the data (a transpose, GPTQ), all data is
 * read once and held. An expert has at most some tens of MB.
 */
export async function openMatrix(reader: RangeReader, matrix: StoredMatrix): Promise<OpenMatrix> {
  const { encoding, cols, data } = matrix;
  const scales = await readScales(reader, matrix);
  let held: { start: number; end: number; bytes: Uint8Array } | undefined;
  return {
    async decode(rows, target) {
      const { start, end } = rowSpan(encoding, cols, rows);
      if (held?.start !== start || held.end !== end) {
        const range = { file: data.file, start: data.start + start, end: data.start + end };
        held = { start, end, bytes: await reader.readRange(range) };
      }
      decodeRows(encoding, cols, rows, held.bytes, scales, target);
    },
  };
}

/** Throws `QuantisedShapeError` if a shape is stored beside the data and differs from it. */
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

/**
 * Decodes some rows of the bytes of `readMatrix`, as they are stored.
 * @param target (range.count, cols) f32
 */
export function decodePart(
  { encoding, rows, cols }: Omit<MatrixFormat, 'transposed'>,
  bytes: Uint8Array,
  range: Range,
  target: Float32Array,
): void {
  const { data } = storedBytes(encoding, rows, cols);
  const { start, end } = rowSpan(encoding, cols, range);
  decodeRows(encoding, cols, range, bytes.subarray(start, end), bytes.subarray(data), target);
}

/** Decodes the bytes of `readMatrix` into `target`, transposed if the format is `transposed`. */
export function decodeMatrix(format: MatrixFormat, bytes: Uint8Array, target: Float32Array): void {
  const { rows, cols, transposed } = format;
  const values = transposed ? new Float32Array(rows * cols) : target;
  decodePart(format, bytes, { first: 0, count: rows }, values);
  if (transposed) transpose(values, rows, cols, target);
}

/** Stored weights, oriented as they are factorised: the same array unless they are transposed. */
export const asFactorised = ({ rows, cols, transposed }: MatrixShape, stored: Float32Array): Float32Array =>
  transposed ? turned(stored, rows, cols) : stored;

/** Factorised weights, oriented as they are stored: the same array unless they are transposed. */
export const asStored = ({ rows, cols, transposed }: MatrixShape, factorised: Float32Array): Float32Array =>
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
