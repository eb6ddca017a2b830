import type { Method } from '../method.js';
import { memory, operations, workingBytes } from './costs.js';
import { type Problem, problemSchema, stores } from './problem.js';
import { integerEncoding } from './quantise-matrix.js';
import { completeOptions, planSizes } from './sizes.js';

/**
 * Plain quantisation, for comparison: each expert is rounded to integers that share scales. In a metric errors are fed forward
 * (GPTQ, Frantar et al. 2022). The rounding is done where weights are written, for every method. So the factor of this one is the expert
 * itself.
 */
export const quantise: Method<Problem> = {
  name: 'quantise',
  title: 'quantisation',
  formula: 'integers that share scales',
  solvers: ['rounding'],
  options: ['width', 'scaleGroup', 'calibration', 'metric'],
  complete: completeOptions,
  plan: planSizes,
  problemSchema,
  details: ({ width, scaleGroup }) => ({ width, scaleGroup }),
  problemOf({ W = [] }, { width, scaleGroup }) {
    const [experts, rows, cols] = W;
    return { experts, rows, cols, width, scaleGroup };
  },
  describe: ({ width, scaleGroup }) => `integers of ${width} bits with a scale for each ${scaleGroup} columns`,
  scaled: 'W',
  stores,
  writes: integerEncoding,
  oneThread: true,
  memory,
  batchBytes: workingBytes,
  /** Experts are rounded one at a time. */
  largestBatch: () => 1,
  operations,
  product: ({ rows, cols }) => ({ rows, cols, rank: Math.min(rows, cols) }),
  /** Experts share no factors. */
  fit: async () => ({ shared: {}, steps: 1, losses: [] }),
  expertFactors: async () => ({
    fit: async (_, target) => ({ W: target.slice() }),
    dispose: async () => {},
  }),
  rebuild: async () => ({
    expert: async (_, { W }) => W as Float32Array,
    dispose: async () => {},
  }),
};
