/**
 * Inverses of Gram matrices by Newton–Schulz iteration, X ← X(2I − GX), and elimination for those of metrics. The iteration needs
 * only matrix products, so it runs on every engine. It converges quadratically if ‖I − GX‖ < 1. That holds for any positive
 * definite X that is scaled down until no eigenvalue of GX is above 1.
 */
import {
  add,
  concat,
  div,
  identity,
  matmul,
  max,
  mul,
  slice,
  sqrt,
  square,
  sub,
  sum,
  type Value,
} from '../../engine/ops.js';

/** λ, as a share of G's mean diagonal, if no other is asked for. It keeps G positive definite. */
const RIDGE = 1e-6;

/** G = FC·Fᵀ + λ·mean(diag)·I, (n, r, r). F is (n, r, d), and so is FC, which is F·C in a metric. */
export function gram(F: Value, FC = F, share = RIDGE): Value {
  const rank = F.shape.at(-2) as number;
  const G = matmul(FC, F, { transposeB: true });
  const diagonal = identity(rank);
  const ridge = add(mul(trace(G), share / rank), 1e-30); // the constant is for F = 0
  return add(G, mul(diagonal, ridge));
}

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

/**
 * V G⁻¹ by elimination of halves, down to single rows, for a positive definite G (n, r, r) and V (n, p, r). In a metric, G is far worse
 * conditioned than F Fᵀ (10⁶ was seen), and a step of the bases changes its inverse by large factors. Iterations from the last inverse
 * then seldom converge, and no inverse in f32 is exact enough, but an elimination without one is. It takes about 17 small operations
 * for each row, so it is slow on graphics devices.
 *
 * With G = [A B; Bᵀ D], V = [V₁ V₂], [Z; T] = [V₁; Bᵀ]A⁻¹ and S = D − TB, it is [Z − YT, Y] with Y = (V₂ − ZB)S⁻¹.
 */
export function solve(G: Value, V: Value): Value {
  const size = G.shape.at(-1) as number;
  if (size === 1) return div(V, G);
  const half = Math.ceil(size / 2);
  const p = V.shape[1] as number;
  const top = slice(G, 1, 0, half);
  const B = slice(top, 2, half, size);
  const bottom = slice(G, 1, half, size);
  const both = solve(slice(top, 2, 0, half), concat([slice(V, 2, 0, half), slice(bottom, 2, 0, half)], 1));
  const Z = slice(both, 1, 0, p);
  const T = slice(both, 1, p, p + size - half);
  const Y = solve(sub(slice(bottom, 2, half, size), matmul(T, B)), sub(slice(V, 2, half, size), matmul(Z, B)));
  return concat([sub(Z, matmul(Y, T)), Y], 2);
}

/** The trace of each matrix, (n, 1, 1). */
const trace = (matrices: Value): Value => sum(mul(matrices, identity(matrices.shape.at(-1) as number)), [1, 2]);
