/** How long a run will take, from its arithmetic and the machine's measured rate. */
import type { CompressionPlan } from './compression-plan.js';
import { sourceBytes } from './group-plan.js';

/** What a solver step reaches of the rate of a plain matrix product of the same shapes; measured, docs/solver.md. */
const STEP_EFFICIENCY = 0.75;
/** A cautious disk, bytes a second; conversions that are not compute-bound are bound by it. */
const DISK_RATE = 300e6;

/**
 * Seconds a compression will take, within a factor of two or so.
 * @param rate floating-point operations a second of one worker's plain matrix products at the groups' shapes
 */
export function estimateSeconds(
  { groups, settings, memory, bytesBefore, bytesAfter }: CompressionPlan,
  rate: number,
): number {
  const operations = groups.reduce((sum, { method, problem }) => sum + method.operations(problem, settings), 0);
  const experts = groups.reduce((sum, group) => sum + sourceBytes(group), 0);
  const compute = operations / (rate * STEP_EFFICIENCY * memory.workers);
  return compute + (bytesBefore + experts + bytesAfter) / DISK_RATE;
}
