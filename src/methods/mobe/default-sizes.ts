/** Chooses a rank and a number of bases for experts that keep too little at full rank. docs/solver.md has the measurements. */
import type { GroupShape } from '../method.js';
import { denseParameters } from '../parameters.js';
import { factorParameters, type Sizes } from './problem.js';

/** The number of bases that the paper gives an expert shape whose full rank keeps more than the default share: Ling-Lite's. */
const PAPER = [{ experts: 64, rows: 1408, cols: 2048, bases: 4 }] as const;

/** The paper's sizes for all experts of a projection, at full rank; undefined if it has none. */
export function paperSizes({ experts, rows, cols }: GroupShape): Sizes | undefined {
  const found = PAPER.find((it) => it.experts === experts && it.rows === rows && it.cols === cols);
  return found && { ...found, rank: Math.min(rows, cols) };
}

/** The number of bases at which the error was least, among pairs of equal parameters. */
const bestBases = (experts: number): number => 0.39 * experts ** 0.85;
/** ln(error) grows by this times ln(bases / best number)². */
const OFF_BEST = 0.4;
/** ln(error) grows by this times the unused share of the dense parameters. */
const UNUSED = 7;

/**
 * The pair of rank and bases of least expected error with at most so many parameters; undefined if none is small enough. From
 * 512 rows and columns on, the rank is a multiple of 16, below of a smaller power of two.
 */
export function leastErrorSizes(shape: GroupShape, parameters: number): Sizes | undefined {
  const { experts: n, rows: p, cols: d } = shape;
  const most = Math.min(p, d);
  const step = Math.min(16, 2 ** Math.max(0, Math.floor(Math.log2(most / 32))));
  let best: Sizes | undefined;
  let least = Number.POSITIVE_INFINITY;
  for (let bases = 1; bases <= n; bases++) {
    const possible = Math.min(most, Math.floor((parameters - n * bases) / (n * p + bases * d)));
    if (possible < 1) break;
    const rank = possible < step || possible === most ? possible : possible - (possible % step);
    const sizes = { experts: n, rows: p, cols: d, bases, rank };
    const unused = (parameters - factorParameters(sizes)) / denseParameters(shape);
    const error = UNUSED * unused + OFF_BEST * Math.log(bases / bestBases(n)) ** 2;
    if (error >= least) continue;
    least = error;
    best = sizes;
  }
  return best;
}
