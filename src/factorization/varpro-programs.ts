/** The tensor programs of a varpro step; varpro.ts runs them. */
import { trace } from '../engine/graph.js';
import { add, div, matmul, mul, reshape, sqrt, square, sub, sum, total, type Value } from '../engine/ops.js';
import { activate, derivative } from './activation.js';
import { coldStart, gram, sharpen } from './inverse.js';
import type { Problem } from './problem.js';

/** Newton–Schulz steps that carry G⁻¹ from one solver step to the next. */
const TRACKING_STEPS = 2;
/** Newton–Schulz steps of a fresh inverse, before it is looked at. */
const FRESH_STEPS = 12;

/** Muon's quintic, by its authors' coefficients; two rounds suffice here. */
const MUON_ROUNDS = 2;
const MUON_COEFFICIENTS = [3.4445, -4.775, 2.0315] as const;

/** f(α·B): (count, r, d), from α (count, m) and B (m, r·d). Also returns the argument of f. */
function mixBases(problem: Problem, B: Value, alpha: Value): { S: Value; F: Value } {
  const S = reshape(matmul(alpha, B), [alpha.shape[0] as number, problem.rank, problem.cols]);
  return { S, F: activate(problem.activation, S) };
}

/** One batch's share of loss and gradients, these without the factor 2/N: neither Muon nor Adam minds it. */
export function traceGradient(problem: Problem, count: number) {
  const { rows: p, cols: d, bases: m, rank: r } = problem;
  const shapes = { B: [m, r * d], alpha: [count, m], X: [count, r, r], W: [count, p, d], dB0: [m, r * d] };
  return trace(shapes, ({ B, alpha, X: X0, W, dB0 }) => {
    const { S, F } = mixBases(problem, B, alpha);
    const { X, residual } = sharpen(gram(F), X0, TRACKING_STEPS);
    const A = matmul(matmul(W, F, { transposeB: true }), X);
    const R = sub(matmul(A, F), W);
    const D = reshape(mul(matmul(A, R, { transposeA: true }), derivative(problem.activation, S, F)), [count, r * d]);
    return {
      X,
      residual,
      squared: total(square(R)),
      dB: add(dB0, matmul(alpha, D, { transposeA: true })),
      dAlpha: matmul(D, B, { transposeB: true }),
    };
  });
}

export function traceFreshInverse(problem: Problem, count: number) {
  const { cols: d, bases: m, rank: r } = problem;
  return trace({ B: [m, r * d], alpha: [count, m] }, ({ B, alpha }) => {
    const G = gram(mixBases(problem, B, alpha).F);
    return sharpen(G, coldStart(G), FRESH_STEPS);
  });
}

export function traceSharpenInverse(problem: Problem, count: number) {
  const { cols: d, bases: m, rank: r } = problem;
  return trace({ B: [m, r * d], alpha: [count, m], X: [count, r, r] }, ({ B, alpha, X }) =>
    sharpen(gram(mixBases(problem, B, alpha).F), X, FRESH_STEPS),
  );
}

/**
 * Muon (Jordan et al. 2024) with Nesterov momentum: each basis moves by the orthogonalised direction. `columns` (1, 1, d)
 * scales the axes of the input: B is searched as B′·diag(columns).
 */
export function traceUpdate({ bases: m, rank: r, cols: d }: Problem) {
  const flat = [m, r * d];
  const shapes = { B: flat, M: flat, dB: flat, columns: [1, 1, d], momentum: [1], step: [1] };
  return trace(shapes, ({ B, M: M0, dB, columns, momentum, step }) => {
    const fresh = mul(dB, sub(1, momentum));
    const M = add(mul(M0, momentum), fresh);
    const gradient = reshape(add(mul(M, momentum), fresh), [m, r, d]);
    const direction = mul(orthogonalise(mul(gradient, columns)), mul(columns, step));
    return { M, B: sub(B, reshape(direction, flat)) };
  });
}

/** Newton–Schulz towards the nearest (semi-)orthogonal matrix of each (r, d) slice. */
function orthogonalise(matrices: Value): Value {
  const [linear, cubic, quintic] = MUON_COEFFICIENTS;
  const [, rank, cols] = matrices.shape as [number, number, number];
  let Y = div(matrices, add(sqrt(sum(square(matrices), [1, 2])), 1e-30));
  for (let round = 0; round < MUON_ROUNDS; round++) {
    // The smaller Gram matrix, from whichever side it is.
    const wide = rank <= cols;
    const Q = wide ? matmul(Y, Y, { transposeB: true }) : matmul(Y, Y, { transposeA: true });
    const P = add(mul(Q, cubic), mul(matmul(Q, Q), quintic));
    Y = add(mul(Y, linear), wide ? matmul(P, Y) : matmul(Y, P));
  }
  return Y;
}
