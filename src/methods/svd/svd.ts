import type { Method } from '../method.js';
import { largestBatch, operations, product, workingBytes } from './costs.js';
import { createExpertFactors } from './expert-factors.js';
import { native } from './native-form.js';
import { type Problem, problemSchema, stores } from './problem.js';
import { createReconstruction } from './reconstruct.js';
import { completeOptions, planSizes } from './sizes.js';

/**
 * Low rank by expert: W ≈ A·V for each expert by itself. It is the best approximation of its rank in ‖W − A·V‖ (Eckart & Young
 * 1936). A metric of the targets is ignored.
 */
export const svd: Method<Problem> = {
  name: 'svd',
  title: 'truncated SVD by expert',
  formula: 'A·V',
  solvers: ['svd'],
  options: ['keep', 'rank'],
  complete: completeOptions,
  plan: planSizes,
  problemSchema,
  details: () => ({}),
  problemOf({ A = [], V = [] }) {
    const [n, p, r] = A;
    return { experts: n, rows: p, cols: V[2], rank: r };
  },
  describe: ({ experts: n, rows: p, cols: d, rank: r }) => `${n} A of ${p} × ${r} and ${n} V of ${r} × ${d}`,
  scaled: 'A',
  stores,
  native,
  // A fit reads no targets. `expertFactors` does all the work, one expert at a time.
  memory: (problem) => ({ targets: 0, state: 0, batch: workingBytes(problem) }),
  batchBytes: workingBytes,
  largestBatch,
  operations,
  product,
  /** Experts share no factors, so there is nothing to fit for the group. */
  fit: async () => ({ shared: {}, steps: 1, losses: [] }),
  expertFactors: (engine, problem, _, round) => createExpertFactors(engine, problem, round),
  rebuild: createReconstruction,
};
