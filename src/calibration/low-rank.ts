/** Approximates covariances by a matrix of low rank plus a multiple of the identity, with matrix products alone. */
import type { Engine, EngineTensor } from '../engine/engine.js';
import { trace } from '../engine/graph.js';
import { add, div, identity, matmul, mul, sqrt, square, sub, sum, type Value } from '../engine/ops.js';
import { createRandom } from '../linalg/random.js';

/** Rounds of subspace iteration. Inputs of trained models have quickly falling spectra. */
const SUBSPACE_ROUNDS = 2;
/** Muon's quintic polynomial lifts small singular values; then a cubic one brings all of them to 1. */
const QUINTIC = [3.4445, -4.775, 2.0315] as const;
const QUINTIC_ROUNDS = 8;
const CUBIC_ROUNDS = 4;
/** Rounds of the root. Eigenvalues below 1e-7 of the largest are not reached, and do not matter. */
const ROOT_ROUNDS = 24;

/** A matrix c·I + ZZᵀ. */
export interface LowRank {
  /** (size, rank), row-major. */
  readonly Z: Float32Array;
  readonly c: number;
}

/** Approximates matrices of one size. */
export interface LowRankApproximation {
  /**
   * Approximates a covariance. The result has its trace.
   * @param covariance (size, size), positive semidefinite
   */
  of(covariance: EngineTensor, trace: number, ...seed: readonly number[]): Promise<LowRank>;
  dispose(): Promise<void>;
}

/**
 * Prepares S ≈ QTQᵀ + c·I, with T = QᵀSQ and an orthonormal Q (size, rank) by subspace iteration (Halko et al. 2011). c spreads the
 * rest of the trace. Z is Q·T^½.
 */
export async function createLowRank(engine: Engine, size: number, rank: number): Promise<LowRankApproximation> {
  const program = await engine.compile(
    trace({ S: [size, size], Q: [size, rank] }, ({ S, Q: start }) => {
      let Q = start;
      for (let round = 0; round < SUBSPACE_ROUNDS; round++) Q = orthonormal(matmul(S, Q));
      return { Z: matmul(Q, root(matmul(Q, matmul(S, Q), { transposeA: true }))) };
    }),
  );
  return {
    async of(covariance, trace, ...seed) {
      const random = createRandom(size, rank, ...seed);
      const Q = engine.tensor(
        Float32Array.from({ length: size * rank }, () => random.normal()),
        [size, rank],
      );
      const { Z } = await program.run({ S: covariance, Q });
      const values = (await engine.read(Z as EngineTensor)).slice();
      let found = 0;
      for (const value of values) found += value * value;
      Q.dispose();
      Z?.dispose();
      return { Z: values, c: Math.max(0, trace - found) / size };
    },
    dispose: () => program.dispose(),
  };
}

/** An orthonormal basis of the columns of M. Directions that are much weaker than the others come out shorter than 1. */
function orthonormal(M: Value): Value {
  const scaled = div(M, sqrt(add(sum(square(M), [0]), 1e-30)));
  const gram = matmul(scaled, scaled, { transposeA: true });
  let X = div(scaled, sqrt(sqrt(add(sum(square(gram), [0, 1]), 1e-30))));
  const one = identity(X.shape[1] as number);
  for (let round = 0; round < QUINTIC_ROUNDS + CUBIC_ROUNDS; round++) {
    const G = matmul(X, X, { transposeA: true });
    const [a, b, c] = QUINTIC;
    const polynomial =
      round < QUINTIC_ROUNDS ? add(mul(one, a), add(mul(G, b), mul(matmul(G, G), c))) : sub(mul(one, 1.5), mul(G, 0.5));
    X = matmul(X, polynomial);
  }
  return X;
}

/** T^½ by coupled Newton–Schulz iteration, for a positive semidefinite T. */
function root(T: Value): Value {
  const one = identity(T.shape[0] as number);
  const size = sqrt(add(sum(square(T), [0, 1]), 1e-30));
  let Y = div(T, size);
  let Z: Value = one;
  for (let round = 0; round < ROOT_ROUNDS; round++) {
    const M = sub(mul(one, 1.5), mul(matmul(Z, Y), 0.5));
    Y = matmul(Y, M);
    Z = matmul(M, Z);
  }
  return mul(Y, sqrt(size));
}
