/** Estimates the duration of a run from its arithmetic and the measured pace of the machine that fits. */
import type { CompressionPlan } from './compression-plan.js';
import { type GroupPlan, sourceBytes } from './group-plan.js';
import { jobMetric, weighingOperations } from './metric-plan.js';
import type { RunSettings } from './settings.js';

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
  /** Expected duration, from the measured pace of the machine that fits, if all steps are taken. */
  readonly estimatedSeconds: number;
  /** Absent if no allocation is wanted, or if the caller gave it. */
  readonly probes?: ProbeOutlook;
}

/** The speed of a worker at a plan's groups, in floating-point operations a second: of a solver's steps, infinite if it has none, and of the rest of a job. */
export interface Pace {
  readonly step: number;
  readonly rest: number;
}

/** The pace of a plan without groups. */
export const FREE: Pace = { step: Number.POSITIVE_INFINITY, rest: Number.POSITIVE_INFINITY };

/** A cautious disk rate, bytes a second. It bounds conversions that need little arithmetic. */
const DISK_RATE = 300e6;

/** The floating-point operations of a group's job: of one step, of all that is not a step, and together. */
export function jobOperations(
  { method, problem, projection }: Pick<GroupPlan, 'method' | 'problem' | 'projection'>,
  { solver, steps, weighing }: Pick<RunSettings, 'solver' | 'steps' | 'weighing'>,
): { step: number; rest: number; whole: number } {
  const metric = jobMetric(weighing?.metric, { projection, problem });
  const of = (count: number): number =>
    method.operations(problem, { solver, steps: count, metric: metric?.fit ? metric.form : undefined });
  const step = of(steps + 1) - of(steps);
  const whole = of(steps);
  return { step, rest: whole - steps * step, whole };
}

/** The expected duration of a compression in seconds, if all steps are taken. */
export function estimateSeconds(
  { groups, settings, memory, bytesBefore, bytesAfter }: CompressionPlan,
  pace: Pace,
): number {
  const { steps, weighing } = settings;
  const fits = groups.map((group) => {
    const { step, rest } = jobOperations(group, settings);
    return (steps * step) / pace.step + rest / pace.rest;
  });
  const longest = Math.max(0, ...fits);
  const together = fits.reduce((sum, it) => sum + it, 0) / memory.workers;
  const metrics = weighing?.metric ? weighingOperations({ ...weighing, metric: weighing.metric }, groups) : 0;
  const experts = groups.reduce((sum, group) => sum + sourceBytes(group), 0);
  return (
    Math.max(longest, together) +
    metrics / ((Number.isFinite(pace.step) ? pace.step : pace.rest) * memory.workers) +
    (bytesBefore + experts + bytesAfter) / DISK_RATE
  );
}
