/**
 * Inverses of Gram matrices by Newton–Schulz iteration, X ← X(2I − GX): matrix products only, so it runs on every
 * engine. It converges quadratically wherever ‖I − GX‖ < 1, and from X = I/‖G‖∞ for every positive definite G.
 */
import { abs, add, div, identity, matmul, max, mul, square, sub, sum, type Value } from '../engine/ops.js';

/** Keeps G positive definite: λ as a share of its mean diagonal. */
export const RIDGE = 1e-6;

/** G = F·Fᵀ + λ·mean(diag)·I. F: (n, r, d); result (n, r, r). */
export function gram(F: Value): Value {
  const rank = F.shape.at(-2) as number;
  const G = matmul(F, F, { transposeB: true });
  const diagonal = identity(rank);
  const ridge = add(mul(sum(mul(G, diagonal), [1, 2]), RIDGE / rank), 1e-30); // the constant: for F = 0
  return add(G, mul(diagonal, ridge));
}

/** A start that always converges. */
export function coldStart(G: Value): Value {
  return div(identity(G.shape.at(-1) as number), max(sum(abs(G), [2]), [1]));
}

/**
 * `iterations` Newton–Schulz steps.
 * @returns the new X, and the largest ‖I − GX‖_F over the batch, shape [1,1,1]. Below 1 it bounds the spectral norm and
 * thereby proves convergence.
 */
export function sharpen(G: Value, X: Value, iterations: number): { X: Value; residual: Value } {
  let inverse = X;
  let error = sub(identity(G.shape.at(-1) as number), matmul(G, X));
  for (let i = 0; i < iterations; i++) {
    inverse = add(inverse, matmul(inverse, error)); // X(2I − GX) = X + X·E
    error = matmul(error, error); // I − G·X(I+E) = E²
  }
  return { X: inverse, residual: max(sum(square(error), [1, 2]), [0]) };
}
