/**
 * The exact A for given B and α, one expert at a time: A = W Fᵀ (F Fᵀ)⁻¹ with the inverse by Newton–Schulz iteration and
 * the remaining error by iterative refinement. Called once, after B and α were rounded to what will be stored.
 */
import type { Engine, EngineTensor, Program } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { add, identity, matmul, reshape, square, sub, total } from '../../engine/ops.js';
import { activate } from './activation.js';
import { gram, restart, sharpen } from './inverse.js';
import type { Problem, SharedFactors } from './problem.js';

const SHARPEN_STEPS = 10;
/** f32 gives no better: each further round only moves rounding about. */
const GOOD_RESIDUAL = 1e-2;
const MAX_ROUNDS = 6;

export interface Refit {
  /** A_i for W_i/σ = `target`: (p, r) f32, row-major. */
  fit(expert: number, target: Float32Array): Promise<Float32Array>;
  dispose(): Promise<void>;
}

export async function createRefit(
  engine: Engine,
  problem: Problem,
  { bases, coefficients }: SharedFactors,
): Promise<Refit> {
  const { bases: m, rank: r, cols: d, rows: p } = problem;
  const start = await engine.compile(
    trace({ B: [m, r * d], alpha: [1, m] }, ({ B, alpha }) => {
      const F = activate(problem.activation, reshape(matmul(alpha, B), [1, r, d]));
      const G = gram(F);
      return { F, G, ...restart(G, identity(r), SHARPEN_STEPS) };
    }),
  );
  const continued = await engine.compile(
    trace({ G: [1, r, r], X: [1, r, r] }, ({ G, X }) => ({ ...sharpen(G, X, SHARPEN_STEPS) })),
  );
  const solve = await engine.compile(
    trace({ F: [1, r, d], X: [1, r, r], W: [1, p, d] }, ({ F, X, W }) => {
      const A0 = matmul(matmul(W, F, { transposeB: true }), X);
      const R0 = sub(W, matmul(A0, F));
      const A1 = add(A0, matmul(matmul(R0, F, { transposeB: true }), X));
      const R1 = sub(W, matmul(A1, F));
      const A2 = add(A1, matmul(matmul(R1, F, { transposeB: true }), X));
      return { A0, A1, A2, e0: total(square(R0)), e1: total(square(R1)), e2: total(square(sub(W, matmul(A2, F)))) };
    }),
  );
  const B = engine.tensor(bases, [m, r * d]);

  const invert = async (expert: number): Promise<{ F: EngineTensor; X: EngineTensor }> => {
    const alpha = engine.tensor(coefficients.slice(expert * m, (expert + 1) * m), [1, m]);
    const first = await start.run({ B, alpha });
    const G = first.G as EngineTensor;
    let X = first.X as EngineTensor;
    let residual = first.residual as EngineTensor;
    for (let round = 1; round < MAX_ROUNDS; round++) {
      const size = Math.sqrt((await engine.read(residual))[0] as number);
      if (size < GOOD_RESIDUAL) break;
      const next = await continued.run({ G, X });
      X.dispose();
      residual.dispose();
      X = next.X as EngineTensor;
      residual = next.residual as EngineTensor;
    }
    residual.dispose();
    G.dispose();
    return { F: first.F as EngineTensor, X };
  };

  return {
    async fit(expert, target) {
      const { F, X } = await invert(expert);
      const W = engine.tensor(target, [1, p, d]);
      const out = await solve.run({ F, X, W });
      // Refinement helps unless the Gram matrix is nearly singular; take what fits best.
      let best = 'A0';
      let least = Number.POSITIVE_INFINITY;
      for (const [name, error] of [
        ['A0', 'e0'],
        ['A1', 'e1'],
        ['A2', 'e2'],
      ] as const) {
        const squared = (await engine.read(out[error] as EngineTensor))[0] as number;
        if (squared < least) [best, least] = [name, squared];
      }
      const result = (await engine.read(out[best] as EngineTensor)).slice();
      for (const tensor of [F, X, W, ...Object.values(out)]) tensor.dispose();
      return result;
    },
    async dispose() {
      B.dispose();
      const programs: Program[] = [start, continued, solve];
      for (const program of programs) await program.dispose();
    },
  };
}
