import type { ExpertFactors, Factors, Method } from '../method.js';
import { solveAdam } from './adam.js';
import { largestBatch } from './batches.js';
import { batchBytes, memory, operations } from './costs.js';
import { native } from './native-form.js';
import { type Problem, problemSchema, type SharedFactors, SOLVERS, stores } from './problem.js';
import { createReconstruction } from './reconstruct.js';
import { createRefit } from './refit.js';
import { completeOptions, defaultSizes, planSizes } from './sizes.js';
import { solveVarpro } from './varpro.js';

/** Mixture of Basis Experts: W ≈ A·f(Σ αB), arXiv 2508.05257. */
export const mobe: Method<Problem> = {
  name: 'mobe',
  title: 'MoBE',
  formula: 'A·f(Σ αB)',
  reference: 'arXiv 2508.05257',
  solvers: SOLVERS,
  options: [
    'bases',
    'keep',
    'rank',
    'groups',
    'activation',
    'quality',
    'steps',
    'learningRate',
    'batchExperts',
    'precision',
    'scaleGroup',
    'calibration',
    'metric',
    'repair',
  ],
  complete: completeOptions,
  plan: planSizes,
  defaultSizes,
  bases: { of: ({ bases }) => bases, change: (problem, bases) => ({ ...problem, bases }) },
  problemSchema,
  details: ({ activation }) => ({ activation }),
  problemOf({ A = [], B = [] }, { activation }) {
    const [n, p, r] = A;
    const [m, , d] = B;
    return { experts: n, rows: p, cols: d, bases: m, rank: r, activation };
  },
  describe: ({ experts: n, rows: p, cols: d, bases: m, rank: r, activation }) =>
    `${n} A of ${p} × ${r} and ${m} bases of ${r} × ${d}, ${activation}`,
  scaled: 'A',
  stores,
  native,
  memory,
  batchBytes,
  largestBatch,
  operations,
  product: ({ rows, cols, rank }) => ({ rows, cols, rank }),
  async fit(engine, problem, targets, { solver, sigma, ...options }) {
    const solution =
      solver === 'adam'
        ? await solveAdam(engine, problem, targets, options, sigma)
        : await solveVarpro(engine, problem, targets, options);
    const { bases: B, coefficients: alpha, steps, losses } = solution;
    return { shared: { B, alpha }, steps, losses };
  },
  async expertFactors(engine, problem, shared, _round, metric, options): Promise<ExpertFactors> {
    const refit = await createRefit(engine, problem, sharedFactors(shared), metric, options);
    return {
      fit: async (expert, target) => ({ A: await refit.fit(expert, target) }),
      fitWithGram: async (expert, target) => {
        const { A, gram } = await refit.fitWithGram(expert, target);
        return { factors: { A }, gram };
      },
      dispose: () => refit.dispose(),
    };
  },
  async rebuild(engine, problem, shared) {
    const reconstruction = await createReconstruction(engine, problem, sharedFactors(shared));
    return {
      expert: (expert, { A }) => reconstruction.expert(expert, A as Float32Array),
      dispose: () => reconstruction.dispose(),
    };
  },
};

const sharedFactors = ({ B, alpha }: Factors): SharedFactors => ({
  bases: B as Float32Array,
  coefficients: alpha as Float32Array,
});
