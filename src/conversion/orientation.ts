/**
 * Which way round a projection is factorised. `down_proj` is stored as (d, p), taller than wide, so its transpose is
 * factorised: its factors are then as small as the others'.
 */
import type { MatrixFormat } from '../checkpoint/stored-matrix.js';
import type { Projection } from '../models/family.js';

const isTransposed = (projection: Projection): boolean => projection === 'down_proj';

type Size = Pick<MatrixFormat, 'rows' | 'cols'>;

/** The size as factorised of a matrix as stored; and the other way round, for it is its own inverse. */
export const turnedSize = (projection: Projection, { rows, cols }: Size): Size =>
  isTransposed(projection) ? { rows: cols, cols: rows } : { rows, cols };

/** How a projection's stored matrices become those that are factorised. */
export const factorisedFormat = (
  projection: Projection,
  { rows, cols, encoding }: Omit<MatrixFormat, 'transposed'>,
): MatrixFormat => ({ rows, cols, encoding, transposed: isTransposed(projection) });
