import type { Engine, EngineTensor } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { matmul, reshape } from '../../engine/ops.js';
import { activate } from './activation.js';
import type { Problem, SharedFactors } from './problem.js';

/** Rebuilds the weights of single experts. */
export interface Reconstruction {
  /** Ŵ_i = A·f(Σ_j α_ij B_j): (p, d) f32, row-major. A: (p, r). */
  expert(expert: number, A: Float32Array): Promise<Float32Array>;
  dispose(): Promise<void>;
}

/**
 * Prepares to rebuild dense weights, one expert at a time. Conversion, export, expansion and verification all use this
 * function, so that they agree to the bit for the same factors.
 */
export async function createReconstruction(
  engine: Engine,
  problem: Problem,
  { bases, coefficients }: SharedFactors,
): Promise<Reconstruction> {
  const { bases: m, rank: r, cols: d, rows: p } = problem;
  const program = await engine.compile(
    trace({ B: [m, r * d], alpha: [1, m], A: [p, r] }, ({ B, alpha, A }) => ({
      W: matmul(A, activate(problem.activation, reshape(matmul(alpha, B), [r, d]))),
    })),
  );
  const B = engine.tensor(bases, [m, r * d]);
  return {
    async expert(expert, A) {
      const alpha = engine.tensor(coefficients.slice(expert * m, (expert + 1) * m), [1, m]);
      const { W } = await program.run({ B, alpha, A: engine.tensor(A, [p, r]) });
      const weights = (await engine.read(W as EngineTensor)).slice();
      W?.dispose();
      return weights;
    },
    async dispose() {
      B.dispose();
      await program.dispose();
    },
  };
}
