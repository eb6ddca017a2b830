/**
 * Inverses of Gram matrices by Newton–Schulz iteration, X ← X(2I − GX). The iteration needs only matrix products, so it runs on
 * every engine. It converges quadratically if ‖I − GX‖ < 1. That holds for any positive definite X that is scaled down until no
 * eigenvalue of GX is above 1.
 */
import { add, div, identity, matmul, max, mul, sqrt, square, sub, sum, type Value } from '../../engine/ops.js';

/** λ, as a share of G's mean diagonal, if no other is asked for. It keeps G positive definite. */
export const RIDGE = 1e-6;

/** G = FC·Fᵀ + λ·mean(diag)·I, (n, r, r). F is (n, r, d), and so is FC, which is F·C in a metric. */
export function gram(F: Value, FC = F, share = RIDGE): Value {
  const rank = F.shape.at(-2) as number;
  const G = matmul(FC, F, { transposeB: true });
  return add(G, mul(identity(rank), ridgeOf(trace(G), rank, share)));
}

/** λ for a G of this trace (n, 1, 1). */
export const ridgeOf = (trace: Value, rank: number, share: number): Value => add(mul(trace, share / rank), 1e-30); // the constant is for F = 0

/** An approximate inverse. */
export interface Inverse {
  readonly X: Value;
  /** The largest ‖I − GX‖_F² of the batch, [1, 1, 1]. Below 1 it proves convergence, because it bounds the spectral norm. */
  readonly residual: Value;
}

/**
 * Takes Newton–Schulz steps from an X that is nearly a multiple of G⁻¹. The multiple changes because G grows with its bases.
 */
export function track(G: Value, X: Value, iterations: number): Inverse {
  const product = matmul(G, X);
  return iterate(X, product, div(trace(product), sum(square(product), [1, 2])), iterations);
}

/** Takes Newton–Schulz steps from any positive definite X, for example the identity. */
export function restart(G: Value, X: Value, iterations: number): Inverse {
  const product = matmul(G, X);
  return iterate(X, product, div(1, sqrt(sum(square(product), [1, 2]))), iterations);
}

/** Takes further Newton–Schulz steps from the result of an earlier call. */
export const sharpen = (G: Value, X: Value, iterations: number): Inverse =>
  iterate(X, matmul(G, X), undefined, iterations);

function iterate(start: Value, product: Value, scale: Value | undefined, iterations: number): Inverse {
  const one = identity(product.shape.at(-1) as number);
  let X = scale ? mul(start, scale) : start;
  let error = sub(one, scale ? mul(product, scale) : product);
  for (let i = 0; i < iterations; i++) {
    X = add(X, matmul(X, error)); // X(2I − GX) = X + X·E
    error = matmul(error, error); // I − G·X(I+E) = E²
  }
  return { X, residual: max(sum(square(error), [1, 2]), [0]) };
}

/** The trace of each matrix, (n, 1, 1). */
export const trace = (matrices: Value): Value => sum(mul(matrices, identity(matrices.shape.at(-1) as number)), [1, 2]);
