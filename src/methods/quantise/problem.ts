import { z } from 'zod';
import type { GroupShape, StoredFactors } from '../method.js';
import { size } from '../size-schema.js';

/** The widths of compressed-tensors that transformers loads. */
export const WIDTHS = [4, 8] as const;

/** A group whose n experts W_i (p, d) become integers that share scales. */
export interface Problem extends GroupShape {
  /** The bits of a weight. */
  readonly width: (typeof WIDTHS)[number];
  /** The columns of a stored row that share a scale. */
  readonly scaleGroup: number;
}

export const problemSchema = z.strictObject({
  experts: size,
  rows: size,
  cols: size,
  width: z.literal(WIDTHS),
  scaleGroup: size,
});

/** The only factor is the expert itself. */
export const stores = ({ rows, cols }: Problem): StoredFactors => ({
  shared: [],
  byExpert: [{ name: 'W', shape: [rows, cols] }],
});
