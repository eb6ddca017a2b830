/** The tensor programs of a varpro step; varpro.ts runs them. */
import { trace } from '../../engine/graph.js';
import { add, div, identity, matmul, mul, reshape, sqrt, sub, sum, total, type Value } from '../../engine/ops.js';
import type { MetricForm } from '../method.js';
import { activateWithDerivative } from './activation.js';
import { gram, type restart, type sharpen, track } from './inverse.js';
import { metricShapes, timesColumns, timesRows } from './metric.js';
import type { Problem } from './problem.js';

/** Newton–Schulz steps that carry G⁻¹ from one solver step to the next. */
const TRACKING_STEPS = 3;
/** Newton–Schulz steps of a fresh inverse, before it is looked at. */
const FRESH_STEPS = 8;

/** Muon's quintic, by its authors' coefficients; two rounds suffice here. */
const QUINTIC_ROUNDS = 2;
const QUINTIC = [3.4445, -4.775, 2.0315] as const;

/** What the Gram matrix of the bases' momentum keeps of itself from step to step. */
export const GRAM_DECAY = 0.9;

/** f(α·B): (count, r, d), from α (count, m) and B (m, r·d). Also returns f′. */
const mixBases = ({ activation, rank, cols }: Problem, B: Value, alpha: Value) =>
  activateWithDerivative(activation, reshape(matmul(alpha, B), [alpha.shape[0] as number, rank, cols]));

/** One batch's share of loss and gradients, these without the factor 2/N: both ways of moving are scale-invariant. */
export function traceGradient(problem: Problem, count: number, metric?: MetricForm) {
  const { rows: p, cols: d, bases: m, rank: r } = problem;
  const { C: C0, P: P0 } = metricShapes(problem, count, metric);
  const weighted = { C: C0, WC: C0 && [count, p, d], P: P0 };
  const shapes = { B: [m, r * d], alpha: [count, m], X: [count, r, r], W: [count, p, d], dB0: [m, r * d], ...weighted };
  return trace(shapes, ({ B, alpha, X: X0, W, dB0, C, WC, P }) => {
    const { value: F, derivative } = mixBases(problem, B, alpha);
    const FC = timesColumns(F, C);
    const { X, residual } = track(gram(F, FC), X0, TRACKING_STEPS);
    const A = matmul(matmul(W, FC, { transposeB: true }), X);
    const R = sub(matmul(A, F), W);
    const RC = WC ? sub(matmul(A, FC), WC) : R;
    const PRC = timesRows(P, RC);
    const D = reshape(mul(matmul(A, PRC, { transposeA: true }), derivative), [count, r * d]);
    return {
      X,
      residual,
      squared: total(mul(R, PRC)),
      dB: add(dB0, matmul(alpha, D, { transposeA: true })),
      dAlpha: matmul(D, B, { transposeB: true }),
    };
  });
}

/** G⁻¹ from far away (`restart`) or going on from there (`sharpen`). */
export function traceInverse(
  problem: Problem,
  count: number,
  iterate: typeof restart | typeof sharpen,
  metric?: MetricForm,
) {
  const { cols: d, bases: m, rank: r } = problem;
  const { C } = metricShapes(problem, count, metric);
  return trace({ B: [m, r * d], alpha: [count, m], X: [count, r, r], C }, ({ B, alpha, X, C }) => {
    const F = mixBases(problem, B, alpha).value;
    return { ...iterate(gram(F, timesColumns(F, C)), X, FRESH_STEPS) };
  });
}

/**
 * Moves each basis by Q^(-1/2)·M: M (r, d) is its momentum and Q the recent average of M·Mᵀ. That is Shampoo's left side
 * (Gupta et al. 2018), by Muon's polynomial in place of the root (Jordan et al. 2024). `columns` (1, 1, d) scales the
 * axes of the input: B is searched as B′·diag(columns). `correction` is 1 − GRAM_DECAY^t.
 */
export function traceUpdate({ bases: m, rank: r, cols: d }: Problem) {
  const flat = [m, r * d];
  const scalars = { momentum: [1], step: [1], correction: [1] };
  const shapes = { B: flat, M: flat, Q: [m, r, r], dB: flat, columns: [1, 1, d], ...scalars };
  return trace(shapes, ({ B, M: M0, Q: Q0, dB, columns, momentum, step, correction }) => {
    const M = add(mul(M0, momentum), mul(dB, sub(1, momentum)));
    const X = mul(reshape(M, [m, r, d]), columns);
    const Q = add(mul(Q0, GRAM_DECAY), mul(matmul(X, X, { transposeB: true }), 1 - GRAM_DECAY));
    const traces = add(sum(mul(Q, identity(r)), [1, 2]), 1e-30);
    const pace = div(step, sqrt(div(traces, correction)));
    const direction = matmul(mul(inverseRoot(div(Q, traces)), pace), X);
    return { M, Q, B: sub(B, reshape(mul(direction, columns), flat)) };
  });
}

/** Roughly Q^(-1/2) for positive semidefinite (m, r, r) of trace 1, its largest values cut off at about 1/√Q = 30. */
function inverseRoot(start: Value): Value {
  const [linear, cubic, quintic] = QUINTIC;
  const one = identity(start.shape.at(-1) as number);
  let Q = start;
  let root: Value | undefined;
  for (let round = 1; ; round++) {
    const P = add(mul(one, linear), add(mul(Q, cubic), mul(matmul(Q, Q), quintic)));
    root = root ? matmul(P, root) : P;
    if (round === QUINTIC_ROUNDS) return root;
    Q = matmul(matmul(P, P), Q);
  }
}
