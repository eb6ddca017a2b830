/**
 * An expert's slice of a fused tensor whose matrices do not follow each other: they are transposed, or their rows alternate. A
 * slice is one range of bytes, which can be written only when all matrices in it are known.
 */
import type { Range } from '../checkpoint/encodings/decoder.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { type ExpertLayer, PROJECTIONS, type Projection } from '../models/family.js';

/** A range of a tensor that some matrices of one expert fill together. */
export interface Slice {
  readonly tensor: string;
  /** The first element, and the number of elements. */
  readonly element: number;
  readonly size: number;
  readonly matrices: readonly StoredMatrix[];
}

/** A matrix in a slice. */
export interface SlicePart {
  readonly slice: Slice;
  readonly matrix: StoredMatrix;
}

/** The slices that hold a projection, in expert order; undefined if each of its matrices is a range of its own. */
export function slicesOf(experts: ExpertLayer['experts'], projection: Projection): Slice[] | undefined {
  const own = experts[projection];
  if (!own.some(({ place }) => place.steps)) return undefined;
  return own.map(({ place: { tensor } }, expert) =>
    sliceOf(PROJECTIONS.flatMap((it) => experts[it][expert] ?? []).filter(({ place }) => place.tensor === tensor)),
  );
}

/** The slice of one expert's matrices, which lie in one tensor. */
export function sliceOf(matrices: readonly StoredMatrix[]): Slice {
  return {
    tensor: matrices[0]?.place.tensor ?? '',
    element: matrices.reduce((least, { place }) => Math.min(least, place.element), Number.POSITIVE_INFINITY),
    size: matrices.reduce((sum, { rows, cols }) => sum + rows * cols, 0),
    matrices,
  };
}

/** Names a slice. No two slices of a checkpoint have the same name. */
export const sliceKey = ({ tensor, element }: Slice): string => `${element} ${tensor}`;

type Numbers = Uint16Array | Uint32Array;

/** The bytes of a number, as numbers that can be moved. Copies them only if they are not aligned. */
function numbersOf(bytes: Uint8Array, size: number): Numbers {
  const { buffer, byteOffset, byteLength } = bytes.byteOffset % size === 0 ? bytes : bytes.slice();
  return size === 2
    ? new Uint16Array(buffer, byteOffset, byteLength / size)
    : new Uint32Array(buffer, byteOffset, byteLength / size);
}

/** The rows and columns that are moved together, so that both sides stay in the CPU's cache. */
const TILE = 32;

/** The place of a matrix in an array: its element (i, j) is at `start + i · row + j · column`. */
interface Strides {
  readonly start: number;
  readonly row: number;
  readonly column: number;
}

/** Moves the elements of a matrix from one array to another. */
function move(rows: number, cols: number, source: Numbers, from: Strides, target: Numbers, to: Strides): void {
  for (let j0 = 0; j0 < cols; j0 += TILE) {
    for (let i0 = 0; i0 < rows; i0 += TILE) {
      const [i1, j1] = [Math.min(rows, i0 + TILE), Math.min(cols, j0 + TILE)];
      for (let j = j0; j < j1; j++) {
        let read = from.start + i0 * from.row + j * from.column;
        let write = to.start + i0 * to.row + j * to.column;
        for (let i = i0; i < i1; i++, read += from.row, write += to.row) target[write] = source[read] as number;
      }
    }
  }
}

/** The place of a matrix's rows in its slice. */
function inSlice({ slice, matrix: { cols, place } }: SlicePart, firstRow: number): Strides {
  const { row, column } = place.steps ?? { row: cols, column: 1 };
  return { start: place.element - slice.element + firstRow * row, row, column };
}

/**
 * Puts rows of a matrix into its slice.
 * @param size bytes of a number: 2 or 4
 * @param from (rows.count, cols), row-major
 * @param to the bytes of the slice, aligned to `size`
 */
export function scatter(part: SlicePart, rows: Range, size: number, from: Uint8Array, to: Uint8Array): void {
  const { cols } = part.matrix;
  const byRow = { start: 0, row: cols, column: 1 };
  move(rows.count, cols, numbersOf(from, size), byRow, numbersOf(to, size), inSlice(part, rows.first));
}

/** Takes a matrix out of the bytes of its slice: the reverse of `scatter`. */
export function gather(part: SlicePart, size: number, from: Uint8Array): Uint8Array<ArrayBuffer> {
  const { rows, cols } = part.matrix;
  const bytes = new Uint8Array(rows * cols * size);
  const byRow = { start: 0, row: cols, column: 1 };
  move(rows, cols, numbersOf(from, size), inSlice(part, 0), numbersOf(bytes, size), byRow);
  return bytes;
}
