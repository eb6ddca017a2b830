/** The loss of a fit at a few of its steps. */

/** A step, counted from 1, and the loss before its update, in units of σ². */
export type LossPoint = readonly [step: number, loss: number];

/** The most points of a curve: enough for a smooth line. A thousand groups then take at most two megabytes. */
export const CURVE_POINTS = 32;

/**
 * Keeps the loss at the last step and at some before it, spread evenly over the logarithm of the planned steps. The choice
 * depends only on the planned steps, so a resumed fit ends with the same curve.
 */
export class LossCurve {
  private readonly marks: ReadonlySet<number>;
  readonly points: LossPoint[] = [];

  /** @param saved `state` of the fit that is resumed */
  constructor(steps: number, saved: ArrayLike<number> = []) {
    this.marks = new Set(Array.from({ length: CURVE_POINTS }, (_, i) => Math.round(steps ** (i / (CURVE_POINTS - 1)))));
    for (let i = 0; i < saved.length; i += 2) this.points.push([saved[i] as number, saved[i + 1] as number]);
  }

  add(step: number, loss: number): void {
    if (!Number.isFinite(loss)) return; // JSON has no infinity
    const [last = 0] = this.points.at(-1) ?? [];
    if (last > 0 && !this.marks.has(last)) this.points.pop();
    this.points.push([step, Number(loss.toPrecision(5))]);
  }

  get state(): Float64Array {
    return Float64Array.from(this.points.flat());
  }
}
