/** How the reference's solver starts: from weights in fp16, by truncated SVDs of blocks of experts. */
import { roundToHalf } from '../../linalg/half.js';
import { truncatedSvd } from '../../linalg/lapack/truncated-svd.js';
import type { Targets } from '../method.js';
import type { Problem } from './problem.js';

/** The experts as the reference has them: rounded to fp16, divided by `divisor`, and rounded again. */
export function halfPrecision(targets: Targets, sigma: number, divisor: number): Targets {
  return {
    read(expert, target) {
      targets.read(expert, target);
      for (let i = 0; i < target.length; i++) target[i] = (target[i] as number) * sigma;
      roundToHalf(target);
      if (divisor === 1) return;
      for (let i = 0; i < target.length; i++) target[i] = (target[i] as number) / divisor;
      roundToHalf(target);
    },
    forget: (expert) => targets.forget?.(expert),
  };
}

export interface StartingFactors {
  A: Float32Array;
  B: Float32Array;
  logits: Float32Array;
}

/** The start: B_j is the right singular vectors of block j of the stacked experts, and A the left ones times S. */
export function startingFactors(problem: Problem, weights: Targets): StartingFactors {
  const { experts: n, bases: m, rank: r, cols: d, rows: p } = problem;
  const A = new Float32Array(n * p * r);
  const B = new Float32Array(m * r * d);
  const logits = new Float32Array(n * m);
  for (let j = 0; j < m; j++) {
    // If there are more bases than experts, a block is one expert, and several bases start from it.
    const first = Math.floor((j * n) / m);
    const end = Math.max(first + 1, Math.floor(((j + 1) * n) / m));
    const count = end - first;
    const stacked = new Float32Array(count * p * d);
    for (let e = 0; e < count; e++) weights.read(first + e, stacked.subarray(e * p * d, (e + 1) * p * d));
    const { left, right } = truncatedSvd(stacked, count * p, d, r);
    A.set(left, first * p * r);
    B.set(right, j * r * d);
    for (let i = first; i < end; i++) logits[i * m + j] = 1;
  }
  return { A, B, logits };
}
