/**
 * The singular value decomposition of PyTorch's LAPACK, to the signs of its vectors. The signs are a free choice in theory, but the
 * reference's solver applies a nonlinear f to the vectors, so other signs are another start. Only adam and the baselines use it;
 * where signs are free, symmetric-eigen.ts is quicker.
 */
import { dot } from '../vectors.js';
import { applyReflectors, type Reduced, reduce } from './bidiagonalise.js';
import { bidiagonalSvd, place } from './divide-and-conquer.js';
import { toOtherTriangle } from './qr-iteration.js';

/** A = U·S (rows, rank) and Vᵀ (rank, cols) of the best rank-`rank` approximation. */
export interface TruncatedSvd {
  readonly left: Float32Array;
  readonly right: Float32Array;
  readonly singularValues: Float64Array;
}

/**
 * The truncated singular value decomposition of a (rows, cols) row-major matrix, in f64, by the steps of sgesdd as PyTorch's
 * LAPACK (MKL) takes them, so that the vectors have the same signs. Components past the matrix's own rank stay zero.
 */
export function truncatedSvd(matrix: Float32Array, rows: number, cols: number, rank: number): TruncatedSvd {
  const { values, vectors } = rightVectors(matrix, rows, cols, rank);
  const left = new Float32Array(rows * rank);
  const right = new Float32Array(rank * cols);
  const row = new Float64Array(cols);
  for (let i = 0; i < rows; i++) {
    row.set(matrix.subarray(i * cols, (i + 1) * cols));
    for (const [k, vector] of vectors.entries()) left[i * rank + k] = dot(row, 0, vector, 0, cols);
  }
  for (const [k, vector] of vectors.entries()) right.set(vector, k * cols);
  return { left, right, singularValues: values };
}

/** Most rows a column at which a matrix goes to bidiagonal form at once, and not by way of a triangle. */
const DIRECT = 1.5;

function rightVectors(matrix: Float32Array, rows: number, cols: number, rank: number) {
  if (rows < cols) {
    // The transpose's bidiagonal form is this one's, lower, with the sides exchanged.
    const reduced = reduce(transpose(matrix, rows, cols), cols, rows);
    const { diagonal, superdiagonal } = reduced;
    toOtherTriangle(diagonal, superdiagonal, rows - 1, () => {});
    const { values, vectors: short } = bidiagonalSvd(diagonal, superdiagonal, rank);
    const vectors = short.map((vector) => place(vector, 0, cols));
    applyReflectors(reduced, 'left', vectors);
    return { values, vectors };
  }
  let reduced = reduce(Float64Array.from(matrix), rows, cols, rows >= DIRECT * cols);
  if (rows >= DIRECT * cols) reduced = reduce(triangleOf(reduced), cols, cols);
  const { values, vectors } = bidiagonalSvd(reduced.diagonal, reduced.superdiagonal, rank);
  applyReflectors(reduced, 'right', vectors);
  return { values, vectors };
}

function triangleOf({ matrix, cols: n, diagonal }: Reduced): Float64Array {
  const triangle = new Float64Array(n * n);
  for (let i = 0; i < n; i++) {
    triangle.set(matrix.subarray(i * n + i, (i + 1) * n), i * n + i);
    triangle[i * n + i] = diagonal[i] as number;
  }
  return triangle;
}

function transpose(matrix: Float32Array, rows: number, cols: number): Float64Array {
  const transposed = new Float64Array(rows * cols);
  for (let i = 0; i < rows; i++)
    for (let j = 0; j < cols; j++) transposed[j * rows + i] = matrix[i * cols + j] as number;
  return transposed;
}
