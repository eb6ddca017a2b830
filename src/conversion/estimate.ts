/** Estimates the duration of a run from its arithmetic and the machine's measured rate. */
import type { CompressionPlan } from './compression-plan.js';
import { sourceBytes } from './group-plan.js';
import { jobMetric, weighingOperations } from './metric-plan.js';

/** The short fits from which an allocation is decided. */
export interface ProbeOutlook {
  /** The number of fits, and the most steps of each. */
  readonly fits: number;
  readonly steps: number;
  /** Whether they are finished, so that the plan has the allocation. Otherwise it has the same number of bases everywhere. */
  readonly finished: boolean;
  /** Expected duration, if they are not finished. */
  readonly estimatedSeconds: number;
  /** Bytes of their factors. */
  readonly diskBytes: number;
  /** Whether they stay in the calibration record, for runs of other sizes. Otherwise they are removed with the result in place. */
  readonly kept: boolean;
}

/** A planned compression with the time that it will take. */
export interface TimedPlan extends CompressionPlan {
  /** Expected duration, from the measured rate of the machine that fits. Accurate to about a factor of two. */
  readonly estimatedSeconds: number;
  /** Absent if no allocation is wanted, or if the caller gave it. */
  readonly probes?: ProbeOutlook;
}

/** The rate of a solver step relative to a plain matrix product of the same shapes; measured, see docs/solver.md. */
const STEP_EFFICIENCY = 0.75;
/** A cautious disk rate, bytes a second. It bounds conversions that need little arithmetic. */
const DISK_RATE = 300e6;

/**
 * The expected duration of a compression in seconds, accurate to about a factor of two.
 * @param rate floating-point operations a second of one worker's plain matrix products at the groups' shapes
 */
export function estimateSeconds(
  { groups, settings, memory, bytesBefore, bytesAfter }: CompressionPlan,
  rate: number,
): number {
  const { solver, steps, weighing } = settings;
  const fits = groups.reduce((sum, group) => {
    const metric = jobMetric(weighing?.metric, group);
    const form = metric?.fit ? metric.form : undefined;
    return sum + group.method.operations(group.problem, { solver, steps, metric: form });
  }, 0);
  const operations =
    fits + (weighing?.metric ? weighingOperations({ ...weighing, metric: weighing.metric }, groups) : 0);
  const experts = groups.reduce((sum, group) => sum + sourceBytes(group), 0);
  const compute = operations / (rate * STEP_EFFICIENCY * memory.workers);
  return compute + (bytesBefore + experts + bytesAfter) / DISK_RATE;
}
