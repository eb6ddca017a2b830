/**
 * Inverses of Gram matrices by Newton–Schulz iteration, X ← X(2I − GX). It needs only matrix products, so it runs on every
 * engine. It converges quadratically if ‖I − GX‖ < 1. That holds for any positive definite X that is scaled down until no
 * eigenvalue of GX is above 1.
 */
import {
  add,
  concat,
  div,
  identity,
  matmul,
  max,
  mul,
  neg,
  slice,
  sqrt,
  square,
  sub,
  sum,
  transpose,
  type Value,
} from '../../engine/ops.js';

/** λ, as a share of G's mean diagonal. It keeps G positive definite. */
const RIDGE = 1e-6;

/** G = FC·Fᵀ + λ·mean(diag)·I, (n, r, r). F is (n, r, d), and so is FC, which is F·C in a metric. */
export function gram(F: Value, FC = F): Value {
  const rank = F.shape.at(-2) as number;
  const G = matmul(FC, F, { transposeB: true });
  const diagonal = identity(rank);
  const ridge = add(mul(trace(G), RIDGE / rank), 1e-30); // the constant is for F = 0
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
 * L⁻¹ of the Cholesky factor of a positive definite G (n, r, r), so that G⁻¹ = L⁻ᵀL⁻¹, by halves down to single rows. It takes about
 * 16 small operations for each row, so it is slow on graphics devices. In a metric, G is far worse conditioned than F Fᵀ, and a step
 * of the bases changes its inverse by large factors, so that iterations from the last one seldom converge. For the same reason it
 * is not enough to eliminate with the inverses of blocks: in f32, fits in the metric of a first layer then diverge.
 *
 * With G = [A Bᵀ; B D], T = B·L_A⁻ᵀ and S = D − TTᵀ = L_S·L_Sᵀ, it is [L_A⁻¹, 0; −L_S⁻¹·T·L_A⁻¹, L_S⁻¹].
 */
export function inverseCholesky(G: Value): Value {
  const size = G.shape.at(-1) as number;
  if (size === 1) return div(1, sqrt(G));
  const half = Math.ceil(size / 2);
  const left = slice(G, 2, 0, half);
  const first = inverseCholesky(slice(left, 1, 0, half));
  const B = slice(left, 1, half, size);
  const T = matmul(B, first, { transposeB: true });
  const S = sub(slice(slice(G, 1, half, size), 2, half, size), matmul(T, T, { transposeB: true }));
  const second = inverseCholesky(S);
  const side = neg(matmul(matmul(second, T), first));
  const zeros = mul(transpose(B, [0, 2, 1]), 0);
  return concat([concat([first, zeros], 2), concat([side, second], 2)], 1);
}

/** The trace of each matrix, (n, 1, 1). */
const trace = (matrices: Value): Value => sum(mul(matrices, identity(matrices.shape.at(-1) as number)), [1, 2]);
