import { Matrix, SVD } from 'ml-matrix';

/** A = U·S (rows, rank) and Vᵀ (rank, cols) of the best rank-`rank` approximation, and all singular values. */
export interface TruncatedSvd {
  readonly left: Float32Array;
  readonly right: Float32Array;
  readonly singularValues: readonly number[];
}

/** The truncated singular value decomposition of a (rows, cols) row-major matrix, in f64. */
export function truncatedSvd(values: Float32Array, rows: number, cols: number, rank: number): TruncatedSvd {
  const matrix = Matrix.from1DArray(rows, cols, values as unknown as number[]);
  const svd = new SVD(matrix, { autoTranspose: true });
  const { leftSingularVectors: U, rightSingularVectors: V, diagonal: S } = svd;
  const left = new Float32Array(rows * rank);
  const right = new Float32Array(rank * cols);
  // Components past the matrix's own rank stay zero.
  for (let k = 0; k < Math.min(rank, S.length); k++) {
    for (let i = 0; i < rows; i++) left[i * rank + k] = U.get(i, k) * (S[k] as number);
    for (let j = 0; j < cols; j++) right[k * cols + j] = V.get(j, k);
  }
  return { left, right, singularValues: S };
}
