/** Finds and reads a model's weights, in any encoding of the checkpoint. */
import { decodeRows, rowSpan } from '../checkpoint/encoding.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { dataOf, isQuantised, quantisedMatrix } from '../checkpoint/quantisation.js';
import { plainMatrix, readScales, type StoredMatrix } from '../checkpoint/stored-matrix.js';
import { MissingTensorError, WeightShapeError } from '../errors.js';
import { type RangeReader, READ_BYTES } from '../sources/files.js';
import type { Holder, ResidentWeights } from './resident-weights.js';

/** A vector, or a matrix (out, in) as linear layers store it. */
export interface Weight {
  readonly shape: readonly number[];
  /** The stored values. A vector is stored as a matrix of one row. */
  readonly matrix: StoredMatrix;
}

/** Shapes of the wanted weights, for a program that takes them. */
export const shapesOf = (
  weights: Readonly<Record<string, Weight>>,
  wanted: (name: string) => boolean = () => true,
): Record<string, readonly number[]> =>
  Object.fromEntries(
    Object.entries(weights)
      .filter(([name]) => wanted(name))
      .map(([name, { shape }]) => [name, shape]),
  );

/** Finds a weight and checks its shape, without reading it. Throws a `MissingTensorError` or a `WeightShapeError`. */
export function findWeight(checkpoint: Checkpoint, name: string, shape: readonly number[]): Weight {
  const tensor = dataOf(name, checkpoint);
  if (!tensor) throw new MissingTensorError(name, checkpoint.folder);
  const matrix = isQuantised(tensor) ? quantisedMatrix(tensor, checkpoint) : plainMatrix(tensor);
  const [rows, cols] = shape.length === 1 ? [1, shape[0]] : shape;
  if (matrix.rows !== rows || matrix.cols !== cols)
    throw new WeightShapeError(tensor.name, tensor.file, tensor.shape, shape);
  return { shape, matrix };
}

/** A range of a matrix's rows. */
export interface Rows {
  readonly first: number;
  readonly count: number;
}

/** Reads weights into the caller's memory through one small buffer. Calls must not overlap. */
export class WeightReader {
  private buffer = new Uint8Array(0);
  private read = 0;

  /** @param resident returns what holds weights as they are stored. Its budget is known only after a model's weights are found. */
  constructor(
    private readonly files: RangeReader,
    private readonly resident?: () => ResidentWeights,
  ) {}

  /** Stored bytes read so far. */
  get bytesRead(): number {
    return this.read;
  }

  /**
   * Decodes rows, and reads them unless they are in memory. Throws a `ReadError`.
   * @param target (rows.count, cols) f32
   * @param rows default: all
   * @param holder who needs the matrix. If given, the whole matrix stays in memory as it is stored, if there is room.
   */
  async fill(
    target: Float32Array,
    matrix: StoredMatrix,
    rows: Rows = { first: 0, count: matrix.rows },
    holder?: Holder,
  ): Promise<void> {
    const resident = this.resident?.();
    if (resident && holder) this.read += await resident.hold(matrix, holder);
    if (resident?.decode(target, matrix, rows)) return;
    const { cols, encoding, data } = matrix;
    const scales = await readScales(this.files, matrix);
    const most = rowsAtOnce(matrix, rows);
    for (let done = 0; done < rows.count; done += most) {
      const part = { first: rows.first + done, count: Math.min(most, rows.count - done) };
      const { start, end } = rowSpan(encoding, cols, part);
      const bytes = this.scratch(end - start);
      await this.files.read(data.file, data.start + start, bytes);
      decodeRows(encoding, cols, part, bytes, scales, target.subarray(done * cols, (done + part.count) * cols));
      this.read += bytes.byteLength;
    }
  }

  private scratch(bytes: number): Uint8Array {
    if (this.buffer.byteLength < bytes) this.buffer = new Uint8Array(bytes);
    return this.buffer.subarray(0, bytes);
  }
}

/** The number of rows that fit into one read; all rows if each of them needs all data. */
function rowsAtOnce({ encoding, cols }: StoredMatrix, { first, count }: Rows): number {
  const bytes = (rows: number): number => {
    const { start, end } = rowSpan(encoding, cols, { first, count: rows });
    return end - start;
  };
  return bytes(1) === bytes(count) ? Math.max(1, count) : Math.max(1, Math.floor((READ_BYTES * count) / bytes(count)));
}
