/**
 * Inverses of Gram matrices by Newton–Schulz iteration, X ← X(2I − GX): matrix products only, so it runs on every
 * engine. It converges quadratically wherever ‖I − GX‖ < 1. From any positive definite X it gets there when scaled down so
 * far that no eigenvalue of GX is above 1.
 */
import { add, div, identity, matmul, max, mul, sqrt, square, sub, sum, type Value } from '../../engine/ops.js';

/** Keeps G positive definite: λ as a share of its mean diagonal. */
const RIDGE = 1e-6;

/** G = FC·Fᵀ + λ·mean(diag)·I. F, and FC = F·C in a metric: (n, r, d); result (n, r, r). */
export function gram(F: Value, FC = F): Value {
  const rank = F.shape.at(-2) as number;
  const G = matmul(FC, F, { transposeB: true });
  const diagonal = identity(rank);
  const ridge = add(mul(trace(G), RIDGE / rank), 1e-30); // the constant: for F = 0
  return add(G, mul(diagonal, ridge));
}

export interface Inverse {
  readonly X: Value;
  /** The largest ‖I − GX‖_F² over the batch, [1, 1, 1]: below 1 it proves convergence, as it bounds the spectral norm. */
  readonly residual: Value;
}

/** `iterations` Newton–Schulz steps from an X that is nearly G⁻¹, or nearly a multiple of it: G grows as its bases do. */
export function track(G: Value, X: Value, iterations: number): Inverse {
  const product = matmul(G, X);
  return iterate(X, product, div(trace(product), sum(square(product), [1, 2])), iterations);
}

/** The same from any positive definite X, the identity for want of a better one. */
export function restart(G: Value, X: Value, iterations: number): Inverse {
  const product = matmul(G, X);
  return iterate(X, product, div(1, sqrt(sum(square(product), [1, 2]))), iterations);
}

/** The same from where an earlier call came to. */
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

/** The sum of each diagonal, (n, 1, 1). */
const trace = (matrices: Value): Value => sum(mul(matrices, identity(matrices.shape.at(-1) as number)), [1, 2]);
