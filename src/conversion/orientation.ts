/**
 * The orientation in which a projection is factorised. `down_proj` is stored as (d, p), taller than wide. Its transpose is
 * factorised, so that its factors are as small as those of the other projections.
 */
import type { MatrixShape } from '../checkpoint/stored-matrix.js';
import type { Projection } from '../models/family.js';

const isTransposed = (projection: Projection): boolean => projection === 'down_proj';

type Size = Pick<MatrixShape, 'rows' | 'cols'>;

/** Converts a stored size to the factorised size. The same function converts back. */
export const turnedSize = (projection: Projection, { rows, cols }: Size): Size =>
  isTransposed(projection) ? { rows: cols, cols: rows } : { rows, cols };

/** The size of a projection's stored matrices, and whether they are transposed before they are factorised. */
export const factorisedShape = (projection: Projection, { rows, cols }: Size): MatrixShape => ({
  rows,
  cols,
  transposed: isTransposed(projection),
});
