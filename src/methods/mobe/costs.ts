/** What a fit holds and computes. */
import type { FitMemory, FitMemoryOptions, MetricForm, MetricMatrixForm } from '../method.js';
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

/** Bytes that a fit and the refit of every expert hold. */
export function memory(problem: Problem, options: FitMemoryOptions): FitMemory {
  const { solver } = options;
  return {
    targets: targetBytes(problem, options),
    state: solver === 'varpro' ? varproState(problem) : adamState(problem),
    batch: programBatches(problem, options) * programBytes(problem, options),
  };
}

/** W of every expert, its WC, and its own C and P, where they are kept; the matrices that all share are kept in any case. */
function targetBytes(
  { experts: n, rows: p, cols: d }: Problem,
  { holdTargets, metric = {} }: Pick<FitMemoryOptions, 'holdTargets' | 'metric'>,
): number {
  const size = { rows: p, cols: d };
  const own = n * ((metric.columns ? 2 : 1) * p * d + metricElements(size, metric, false));
  return 4 * ((holdTargets ? own : 0) + metricElements(size, metric, true));
}

/**
 * Seventeen arrays have the size of all bases: B, M and those before and after them, zeros, the gradient before and after a batch;
 * two copies of results before their collection; five intermediate results of the update; at the end the result. It takes four steps until a solver has all of its own: 15.6 were measured. The bases' Gram matrices are there three
 * times and in a copy, G⁻¹ twice.
 */
const varproState = ({ experts: n, cols: d, bases: m, rank: r }: Problem): number =>
  4 * (17 * m * r * d + 4 * m * r * r + 2 * n * r * r);

function adamState({ experts: n, rows: p, cols: d, bases: m, rank: r }: Problem): number {
  // A and B with two moments each, twice over while they are updated.
  const steps = 4 * (8 * m * r * d + 7 * n * p * r);
  // Before that, the decomposition of a block of experts in f64: the matrix, its triangle, vectors of the halves and of it.
  const block = Math.ceil(n / m) * p;
  const [short, long] = [Math.min(block, d), Math.max(block, d)];
  const start = 4 * (m * r * d + n * p * r + block * d) + 8 * (block * d + 3 * short * short + r * long);
  return Math.max(steps, start);
}

/**
 * Experts that the programs hold at once. There is a program for each size of a batch, and it keeps its memory while another
 * runs. Adam has one more for the last batch.
 */
function programBatches({ experts: n }: Problem, { solver, batchExperts }: FitMemoryOptions): number {
  if (batchExperts >= n) return n;
  const rest = n % batchExperts;
  return batchExperts + (solver === 'adam' ? rest || batchExperts : rest);
}

/** For each of these experts: a step, and for varpro five arrays of the size of G in the program that starts an inverse. */
const programBytes = (problem: Problem, { solver, metric }: FitMemoryOptions): number =>
  batchBytes(problem, metric) + (solver === 'varpro' ? 4 * 5 * problem.rank ** 2 : 0);

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
