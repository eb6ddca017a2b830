import { z } from 'zod';
import type { GroupShape, StoredFactors } from '../method.js';
import { size } from '../size-schema.js';

/** A group to factorise: W_i/σ ≈ A_i·V_i for n experts W_i (p, d), with A_i (p, r) and V_i (r, d). */
export interface Problem extends GroupShape {
  /** r, at most min(p, d) */
  readonly rank: number;
}

export const problemSchema = z
  .strictObject({ experts: size, rows: size, cols: size, rank: size })
  .refine(({ rows, cols, rank }) => rank <= Math.min(rows, cols), {
    path: ['rank'],
    message: 'more than a matrix has',
  });

/** The stored factors: A (p, r) and V (r, d) of each expert. */
export const stores = ({ rows: p, cols: d, rank: r }: Problem): StoredFactors => ({
  shared: [],
  byExpert: [
    { name: 'A', shape: [p, r] },
    { name: 'V', shape: [r, d] },
  ],
});
