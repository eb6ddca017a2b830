/** The error that a fit would reach with more steps, judged from a short one. docs/solver.md has the measurements. */
import type { LossPoint } from '../methods/loss-curve.js';

/** A short fit cannot tell an error from nothing if it is less than this share of its own. */
const LEAST_SHARE = 0.1;

/**
 * The share of a short fit's error that is left after `steps` steps. The loss falls like a + b·k^(−1/2) with the step k, so the
 * loss at half of the steps and the last one give a and b.
 */
export function remainingShare(losses: readonly LossPoint[], steps: number): number {
  const last = losses.at(-1);
  if (!last || steps <= last[0]) return 1;
  const middle = last[0] / 2;
  const [first, ...others] = losses as [LossPoint, ...LossPoint[]];
  const half = others.reduce((best, it) => (Math.abs(it[0] - middle) < Math.abs(best[0] - middle) ? it : best), first);
  if (half[0] >= last[0]) return 1;
  const slope = (half[1] - last[1]) / (half[0] ** -0.5 - last[0] ** -0.5);
  const expected = last[1] - slope * (last[0] ** -0.5 - steps ** -0.5);
  return Math.min(1, Math.max(LEAST_SHARE, expected / last[1]));
}
