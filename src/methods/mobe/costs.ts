/** What a fit holds and computes. */
import type { MetricForm, MetricMatrixForm } from '../method.js';
import type { Problem } from './problem.js';

/**
 * Bytes alive at once for one expert of a batch: S, F, f′, D and their products; W, R; A, WFᵀ; G, X and their products.
 * In a metric also FC, WC and RC; P(RC); and the expert's own C and P.
 */
export function batchBytes({ rows: p, cols: d, rank: r }: Problem, metric: MetricForm = {}): number {
  const plain = 6 * r * d + 3 * p * d + 3 * p * r + 4 * r * r;
  const columns = metric.columns ? r * d + 2 * p * d : 0;
  const rows = metric.rows ? p * d : 0;
  return 4 * (plain + columns + rows + metricElements({ rows: p, cols: d }, metric, false));
}

/** The numbers of those matrices of a metric that all experts share, or else of those that each has of its own. */
function metricElements(
  { rows: p, cols: d }: Pick<Problem, 'rows' | 'cols'>,
  { rows, columns }: MetricForm,
  shared: boolean,
): number {
  const elements = (matrix: MetricMatrixForm | undefined, size: number): number => {
    if (matrix?.shared !== shared) return 0;
    return matrix.form === 'full' ? size * size : size;
  };
  return elements(rows, p) + elements(columns, d);
}

/** Bytes a solver holds from step to step. */
export function stateBytes(
  { experts: n, rows: p, cols: d, bases: m, rank: r }: Problem,
  {
    holdTargets,
    solver,
    metric = {},
  }: { readonly holdTargets: boolean; readonly solver: string; readonly metric?: MetricForm | undefined },
): number {
  const size = { rows: p, cols: d };
  // W of every expert, its WC, and its own C and P; the matrices that all share are held in any case.
  const held = n * ((metric.columns ? 2 : 1) * p * d + metricElements(size, metric, false));
  const targets = (holdTargets ? held : 0) + metricElements(size, metric, true);
  const bases = m * r * d;
  // varpro: B, M, those before them, the gradient, their update, and their spares; the bases' Gram matrices, those before
  // them, and their root; G⁻¹ twice.
  if (solver === 'varpro') return 4 * (targets + 14 * bases + 8 * m * r * r + 2 * n * r * r);
  // adam: A and B with two moments each, twice over while they are updated.
  const steps = 4 * (targets + 8 * bases + 7 * n * p * r);
  // Before that, the decomposition of a block of experts in f64: the matrix, its triangle, vectors of the halves and of it.
  const block = Math.ceil(n / m) * p;
  const [short, long] = [Math.min(block, d), Math.max(block, d)];
  const start = 4 * (bases + n * p * r + block * d) + 8 * (block * d + 3 * short * short + r * long);
  return Math.max(steps, start);
}

/** Solver steps' worth of arithmetic in the final refit and its check, per expert. */
const REFIT_STEPS = 8;

/** Floating-point operations of a fit and of all A. */
export const operations = (
  problem: Problem,
  { solver, steps }: { readonly solver: string; readonly steps: number },
): number => (steps + REFIT_STEPS) * stepOperations(problem, solver);

/** Floating-point operations of one solver step over a whole group. */
export function stepOperations({ experts: n, rows: p, cols: d, bases: m, rank: r }: Problem, solver: string): number {
  const unit = 2 * n * p * r * d;
  const mixing = 3 * 2 * n * m * r * d;
  if (solver === 'adam') return 3 * unit + mixing;
  const gram = 2 * n * r * r * d;
  const inverse = 7 * 2 * n * r ** 3;
  const update = m * (4 * r * r * d + 5 * 2 * r ** 3);
  return 3 * unit + gram + inverse + 2 * n * p * r * r + mixing + update;
}
