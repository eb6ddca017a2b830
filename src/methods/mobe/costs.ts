/** The memory and the operations of a fit. */
import type { FitMemory, FitMemoryOptions, MetricForm, MetricMatrixForm } from '../method.js';
import { basisParts } from './basis-parts.js';
import { leafElements, leafRows } from './block-solve.js';
import { keepsProduct, matrixElements } from './metric.js';
import type { Problem } from './problem.js';

/**
 * Bytes alive at once for one expert of a batch: S, F, f′, D and their products; W, R; A, WFᵀ; blocks of G, X and their products.
 * A metric adds FC, RC, and WC if C is full; P(RC); and the expert's own C and P. A C of low rank adds FZ, RZ and Z, a P of low rank
 * Zᵀ(RC) and Z.
 */
export function batchBytes({ rows: p, cols: d, rank: r }: Problem, metric: MetricForm = {}): number {
  const plain = 6 * r * d + 3 * p * d + 3 * p * r + 4 * r * r;
  const { rank: k = 0 } = metric.columns ?? {};
  const { rank: l = 0 } = metric.rows ?? {};
  const columns = metric.columns ? r * d + (keepsProduct(metric) ? 2 : 1) * p * d + (r + p + d) * k : 0;
  const rows = metric.rows ? p * d + (p + d) * l : 0;
  return 4 * (plain + columns + rows + metricElements({ rows: p, cols: d }, metric, false));
}

/** The number of elements of a metric's matrices: if `shared`, of those that all experts share, else of an expert's own. */
function metricElements(
  { rows: p, cols: d }: Pick<Problem, 'rows' | 'cols'>,
  { rows, columns }: MetricForm,
  shared: boolean,
): number {
  const elements = (matrix: MetricMatrixForm | undefined, size: number): number => {
    return matrix?.shared === shared ? matrixElements(matrix, size) : 0;
  };
  return elements(rows, p) + elements(columns, d);
}

/** The most experts whose D are collected, and the most bytes of these. */
const MAX_TURNS = 8;
const TURNS_BYTES = 256 * 2 ** 20;
/** An expert is large if its step takes more. Two of them are more than a usual batch on a CPU (`BATCH_BYTES`). */
const LARGE_BYTES = 64 * 2 ** 20;

/**
 * The number of experts whose D are collected before they are added to the gradient of the bases. It is 1 unless an expert is so large
 * that a batch has only one: each addition reads and writes a gradient of all bases. With more experts than bases, their D would take
 * more memory than that gradient.
 */
export function turnsOf(problem: Problem, batchExperts: number, metric?: MetricForm, largeBytes = LARGE_BYTES): number {
  if (batchExperts > 1 || metric !== undefined || batchBytes(problem) <= largeBytes) return 1;
  const most = Math.floor(TURNS_BYTES / (4 * problem.rank * problem.cols));
  return Math.max(1, Math.min(problem.bases, MAX_TURNS, most));
}

/** Bytes that a fit and the refit of every expert hold. */
export function memory(problem: Problem, options: FitMemoryOptions): FitMemory {
  const { solver } = options;
  return {
    targets: targetBytes(problem, options),
    state: solver === 'varpro' ? varproState(problem, options) : adamState(problem),
    batch: programBatches(problem, options) * programBytes(problem, options) + collectedBytes(problem, options),
  };
}

/**
 * Bytes of every expert's W, WC, and own C and P, if targets are held. A batch of one expert takes C and P where they are. The matrices
 * that all experts share are always held.
 */
function targetBytes(
  { experts: n, rows: p, cols: d }: Problem,
  { holdTargets, batchExperts, metric = {} }: Pick<FitMemoryOptions, 'holdTargets' | 'batchExperts' | 'metric'>,
): number {
  const size = { rows: p, cols: d };
  const copied = batchExperts > 1 ? metricElements(size, metric, false) : 0;
  const own = n * ((keepsProduct(metric) ? 2 : 1) * p * d + copied);
  return 4 * ((holdTargets ? own : 0) + metricElements(size, metric, true));
}

/**
 * Four arrays have the size of all bases (moving-bases.ts). The rest of a step takes eleven like the largest part: zeros; spare
 * tensors for a sum and for a momentum; two intermediate results of the start, two of adding to a sum, and two of the update; and
 * copies of a momentum and of new bases. 10.2 and 10.4 were measured. The largest part's Gram matrices exist four times more. The inverses
 * of leaves exist three times more for a batch.
 */
function varproState(problem: Problem, { writesParts, batchExperts }: FitMemoryOptions): number {
  const { experts: n, cols: d, bases: m, rank: r } = problem;
  const part = Math.max(...basisParts(problem, { writesParts }).map(({ count }) => count));
  const leaves = (n + 3 * Math.min(n, batchExperts)) * leafElements(r);
  return 4 * ((4 * m + 11 * part) * r * d + (m + 4 * part) * r * r + leaves);
}

function adamState({ experts: n, rows: p, cols: d, bases: m, rank: r }: Problem): number {
  // A and B have two moments each. All of these exist twice while they are updated.
  const steps = 4 * (8 * m * r * d + 7 * n * p * r);
  // The start decomposes a block of experts in f64. It holds the matrix, its triangle, and vectors of the halves and the whole.
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

/** Bytes for each of these experts: those of a step, and for varpro those of the program that starts inverses. */
const programBytes = (problem: Problem, { solver, metric }: FitMemoryOptions): number =>
  batchBytes(problem, metric) + (solver === 'varpro' ? restartBytes(problem) : 0);

/** Five arrays like a leaf; if there are several leaves, also F in parts and blocks of G. */
function restartBytes({ rank: r, cols: d }: Problem): number {
  const [leaf, ...others] = leafRows(r) as [number, ...number[]];
  return 4 * (5 * leaf * leaf + (others.length ? 2 * r * d + r * r : 0));
}

/**
 * The D that are collected for parts of the bases, and a copy of a batch's D; and the weights of a batch of one expert unless
 * targets are held. Collections of two sizes have two programs, with an intermediate result each.
 */
function collectedBytes(problem: Problem, options: FitMemoryOptions): number {
  const { experts: n, rows: p, cols: d, rank: r } = problem;
  const { solver, writesParts = false, batchExperts, holdTargets, metric } = options;
  if (solver !== 'varpro') return 0;
  const parts = basisParts(problem, { writesParts });
  const turns = writesParts ? turnsOf(problem, batchExperts, metric) : 1;
  if (turns === 1) return parts.length > 1 ? 4 * 2 * Math.min(n, batchExperts) * r * d : 0;
  const part = Math.max(...parts.map(({ count }) => count));
  const programs = n % Math.ceil(n / turns) ? 2 : 1;
  return 4 * ((turns + 1 + (programs - 1) * part) * r * d + (holdTargets ? 0 : p * d));
}

/** The final refit and its check take as many operations for each expert as this number of solver steps. */
const REFIT_STEPS = 8;

/** Floating-point operations of a fit and of all A. */
export const operations = (
  problem: Problem,
  {
    solver,
    steps,
    metric,
  }: { readonly solver: string; readonly steps: number; readonly metric?: MetricForm | undefined },
): number => (steps + REFIT_STEPS) * stepOperations(problem, solver, metric);

/** Floating-point operations of one solver step over a whole group. */
export function stepOperations(problem: Problem, solver: string, { rows, columns }: MetricForm = {}): number {
  const { experts: n, rows: p, cols: d, bases: m, rank: r } = problem;
  const unit = 2 * n * p * r * d;
  const mixing = 3 * 2 * n * m * r * d;
  if (solver === 'adam') return 3 * unit + mixing;
  const gram = n * (r * r + leafElements(r)) * d;
  const update = m * (4 * r * r * d + 5 * 2 * r ** 3);
  const plain = 3 * unit + gram + n * solveOperations(r, p) + mixing + update;
  return (
    plain +
    timesMatrix(columns, n * r, d) +
    (columns?.form === 'full' ? unit : timesMatrix(columns, n * p, d)) +
    timesMatrix(rows, n * d, p)
  );
}

/** Operations of V·G⁻¹, for V of `rows` rows, and of three steps that track the leaves. */
function solveOperations(size: number, rows: number): number {
  if (leafRows(size).length === 1) return 2 * rows * size ** 2 + 7 * 2 * size ** 3;
  const top = Math.ceil(size / 2);
  const bottom = size - top;
  const downdate = top * (bottom ** 2 + leafElements(bottom));
  return solveOperations(top, rows + bottom) + downdate + 4 * rows * top * bottom + solveOperations(bottom, rows);
}

/** Operations of a product of `count` vectors with a matrix of this size. */
function timesMatrix(matrix: MetricMatrixForm | undefined, count: number, size: number): number {
  if (matrix === undefined || matrix.form === 'diagonal') return 0;
  return 2 * count * size * (matrix.form === 'full' ? size : 2 * (matrix.rank as number));
}
