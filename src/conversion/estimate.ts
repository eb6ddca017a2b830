/** How long a run will take, from its arithmetic and the machine's measured rate. */
import type { Problem, SolverName } from '../methods/mobe/problem.js';
import type { CompressionPlan } from './compression-plan.js';
import { sourceBytes } from './group-plan.js';

/** What a solver step reaches of the rate of a plain matrix product of the same shapes; measured, docs/solver.md. */
const STEP_EFFICIENCY = 0.75;
/** A cautious disk, bytes a second; conversions that are not compute-bound are bound by it. */
const DISK_RATE = 300e6;
/** Solver steps' worth of arithmetic in the final refit and its check, per expert. */
const REFIT_STEPS = 8;

/** Floating-point operations of one solver step over a whole group. */
export function stepOperations(
  { experts: n, rows: p, cols: d, bases: m, rank: r }: Problem,
  solver: SolverName,
): number {
  const unit = 2 * n * p * r * d;
  const mixing = 3 * 2 * n * m * r * d;
  if (solver === 'adam') return 3 * unit + mixing;
  const gram = 2 * n * r * r * d;
  const inverse = 7 * 2 * n * r ** 3;
  const update = m * (4 * r * r * d + 5 * 2 * r ** 3);
  return 3 * unit + gram + inverse + 2 * n * p * r * r + mixing + update;
}

/**
 * Seconds a compression will take, within a factor of two or so.
 * @param rate floating-point operations a second of one worker's plain matrix products at the groups' shapes
 */
export function estimateSeconds(
  { groups, settings, memory, bytesBefore, bytesAfter }: CompressionPlan,
  rate: number,
): number {
  const operations = groups.reduce(
    (sum, { problem }) => sum + (settings.steps + REFIT_STEPS) * stepOperations(problem, settings.solver),
    0,
  );
  const experts = groups.reduce((sum, group) => sum + sourceBytes(group), 0);
  const compute = operations / (rate * STEP_EFFICIENCY * memory.workers);
  return compute + (bytesBefore + experts + bytesAfter) / DISK_RATE;
}
