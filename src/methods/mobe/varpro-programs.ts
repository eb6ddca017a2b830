/** The tensor programs of a varpro step, which gradient-pass.ts and moving-bases.ts run. */
import { trace } from '../../engine/graph.js';
import {
  add,
  constant,
  div,
  identity,
  matmul,
  mul,
  reshape,
  sqrt,
  sub,
  sum,
  total,
  transpose,
  type Value,
} from '../../engine/ops.js';
import type { MetricForm } from '../method.js';
import { activateWithDerivative } from './activation.js';
import { eliminate, gramBlocks, leafShape, solve, trackLeaves } from './block-solve.js';
import { restart, track } from './inverse.js';
import { keepsProduct, metricShapes, timesColumns, timesRows } from './metric.js';
import type { Problem } from './problem.js';

/** Newton–Schulz steps that update the inverse of a leaf from one solver step to the next. */
const TRACKING_STEPS = 3;
/** Newton–Schulz steps of a new inverse before its residual is checked. */
const FRESH_STEPS = 12;

/** Muon's quintic polynomial, with the coefficients of its authors. Two rounds are enough here. */
const QUINTIC_ROUNDS = 2;
const QUINTIC = [3.4445, -4.775, 2.0315] as const;

/** The decay of the average of the momentum's Gram matrices, for each step. */
export const GRAM_DECAY = 0.9;

/** f(α·B) and f′(α·B), (count, r, d), from α (count, m) and B (m, r·d). */
const mixBases = ({ activation, rank, cols }: Problem, B: Value, alpha: Value) =>
  activateWithDerivative(activation, reshape(matmul(alpha, B), [alpha.shape[0] as number, rank, cols]));

/**
 * The share of one batch in the loss and the gradients. Gradients lack the factor 2/N, because both updates are
 * scale-invariant. With a ridge, the loss of an expert is tr(P R C Rᵀ) + λ·tr(P A Aᵀ), λ = ridge·tr(F C Fᵀ)/r. λ depends on F too,
 * which gives the gradient a second term. A smallest ridge that nobody asked for is left out of both.
 */
export function traceGradient(
  problem: Problem,
  count: number,
  metric?: MetricForm,
  { eliminates = false, gathers = false, ...how }: GradientOptions = {},
) {
  const { rows: p, cols: d, bases: m, rank: r } = problem;
  const { C: C0, P: P0 } = metricShapes(problem, count, metric);
  const weighted = { C: C0, WC: keepsProduct(metric) ? [count, p, d] : undefined, P: P0 };
  const known = { X: eliminates ? undefined : leafShape(count, r) };
  const dB = gathers ? undefined : [m, r * d];
  const shapes = { B: [m, r * d], alpha: [count, m], ...known, W: [count, p, d], dB0: dB, ...weighted };
  return trace(shapes, ({ dB0, ...inputs }) => {
    const { D, squared, inverse } = experts(problem, inputs, how);
    const sums = dB0 ? gather(inputs.B, dB0, inputs.alpha, D) : { D };
    return { ...inverse, squared, ...sums } as Record<'X' | 'residual' | 'squared' | 'dB' | 'D' | 'dAlpha', Value>;
  });
}

/** The gradient of bases, whose α is (count, bases), with that of the experts before; and the gradient of these α. */
const gather = (B: Value, dB0: Value, alpha: Value, D: Value) => ({
  dB: add(dB0, matmul(alpha, D, { transposeA: true })),
  dAlpha: matmul(D, B, { transposeB: true }),
});

/** Adds D of some experts to the gradient of some bases. */
export const traceGather = ({ rank: r, cols: d }: Problem, count: number, bases: number) => {
  const shapes = { B: [bases, r * d], dB0: [bases, r * d], alpha: [count, bases], D: [count, r * d] };
  return trace(shapes, ({ B, dB0, alpha, D }) => gather(B, dB0, alpha, D));
};

interface GradientOptions {
  /** Whether leaves of G are eliminated, and not inverted from earlier inverses X. */
  readonly eliminates?: boolean;
  readonly ridge?: number | undefined;
  /** Whether D is a result, for `traceGather`, in place of the gradients. */
  readonly gathers?: boolean;
  /** Whether A is refined once, for products whose factors are rounded. */
  readonly refines?: boolean;
}

/** B, and what belongs to experts, (count, …). What all experts share is (1, …). */
type ExpertInputs = Record<'B' | 'alpha' | 'W', Value> & Partial<Record<'X' | 'C' | 'WC' | 'P', Value | undefined>>;

/** D (count, r·d), the loss of these experts, and the inverses of their leaves. */
function experts(
  problem: Problem,
  { B, alpha, X, W, C, WC, P }: ExpertInputs,
  { ridge, refines }: Pick<GradientOptions, 'ridge' | 'refines'>,
) {
  const { cols: d, rank: r } = problem;
  const { value: F, derivative } = mixBases(problem, B, alpha);
  const FC = timesColumns(F, C);
  const tracker = X && trackLeaves(X, (G, known) => track(G, known, TRACKING_STEPS));
  const V = matmul(W, FC, { transposeB: true });
  const { G, ridge: lambda } = gramBlocks(F, FC, ridge);
  const solved = solve(G, V, tracker?.solveLeaf ?? eliminate);
  const residual = (it: Value): { R: Value; RC: Value } => {
    const R = sub(matmul(it, F), W);
    return { R, RC: WC ? sub(matmul(it, FC), WC) : timesColumns(R, C) };
  };
  let { A } = solved;
  if (refines) {
    const slope = add(matmul(residual(A).RC, F, { transposeB: true }), mul(A, lambda));
    A = sub(A, solved.again(slope));
  }
  const { R, RC } = residual(A);
  const PRC = timesRows(P, RC);
  // ONNX Runtime multiplies by a large transposed copy faster than it transposes while it multiplies. The reshape keeps both apart.
  const slope =
    alpha.shape[0] === 1
      ? matmul(reshape(transpose(A, [0, 2, 1]), [r, A.shape[1] as number]), PRC)
      : matmul(A, PRC, { transposeA: true });
  const error = total(mul(R, PRC));
  /** ridge/r·tr(P A Aᵀ) of each expert, (count, 1, 1) */
  const price = ridge === undefined ? undefined : mul(sum(mul(A, timesRows(P, A)), [1, 2]), ridge / r);
  return {
    D: reshape(mul(price ? add(slope, mul(FC, price)) : slope, derivative), [alpha.shape[0] as number, r * d]),
    squared: price ? add(error, total(mul(price, sum(mul(F, FC), [1, 2])))) : error,
    inverse: tracker?.gather(),
  };
}

/** Inverts the leaves of G from any positive definite X, for example identities. */
export function traceRestart(problem: Problem, count: number, metric?: MetricForm, ridge?: number) {
  const { cols: d, bases: m, rank: r } = problem;
  const { C } = metricShapes(problem, count, metric);
  return trace({ B: [m, r * d], alpha: [count, m], X: leafShape(count, r), C }, ({ B, alpha, X, C }) => {
    const F = mixBases(problem, B, alpha).value;
    const tracker = trackLeaves(X, (G, known) => restart(G, known, FRESH_STEPS));
    const anything = constant(new Float32Array(count * r), [count, 1, r]);
    solve(gramBlocks(F, timesColumns(F, C), ridge).G, anything, tracker.solveLeaf);
    return { ...tracker.gather() };
  });
}

/**
 * Moves each basis by Q^(-1/2)·M. M (r, d) is its momentum, and Q the recent average of M·Mᵀ. This is the left side of Shampoo
 * (Gupta et al. 2018), with Muon's polynomial instead of the root (Jordan et al. 2024). `columns` (1, 1, d) scales the input
 * axes: B is searched as B′·diag(columns). `correction` is 1 − GRAM_DECAY^t.
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

/** Approximates Q^(-1/2) for positive semidefinite Q (m, r, r) of trace 1. Its largest values are limited to about 30. */
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
