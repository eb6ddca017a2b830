import type { Engine, EngineTensor } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { matmul, reshape } from '../../engine/ops.js';
import { activate } from './activation.js';
import type { Problem, SharedFactors } from './problem.js';

/** Rebuilds the weights of the experts of one group. */
export interface Reconstruction {
  /** Ŵ_i = A·f(Σ_j α_ij B_j): (p, d) f32, row-major. A: (p, r). */
  expert(expert: number, A: Float32Array): Promise<Float32Array>;
  dispose(): Promise<void>;
}

/**
 * Rebuilds dense weights, one expert at a time. There is only this one way from factors to weights, so that a
 * conversion, an export, an expansion and a verification of the same factors agree to the bit.
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
