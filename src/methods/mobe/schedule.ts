/**
 * The progress of a varpro run, and the rates that follow from it. A run is planned for a number of steps. When the loss falls
 * so slowly that the remaining steps cannot gain much, the rest of the plan is shortened.
 */
import type { Activation } from './problem.js';

const FIRST_MOMENTUM = 0.5;
const DECAY_POWER = 0.6;

/**
 * The first learning rates. Longer runs need smaller steps and a longer memory; the constants were fitted at 100 to 2400 steps.
 * silu's arguments stay where silu is almost linear. tanh's arguments spread over its bend, which is a longer way. sigmoid(x)
 * is ½ + ½tanh(x/2), so its arguments are twice those of tanh.
 */
const FIRST_RATE: Record<Activation, number> = {
  silu: 0.15,
  tanh: 0.25,
  gelu: 0.15,
  relu: 0.4,
  sigmoid: 0.5,
  none: 0.4,
};
const defaultRate = (steps: number, activation: Activation): number =>
  FIRST_RATE[activation] * (100 / Math.max(20, steps)) ** 0.55;
const lastMomentum = (steps: number): number => 1 - 0.03 * (100 / Math.max(20, steps)) ** 0.5;

/** The rest of a run is shortened if, at the pace of the last window, it would lower the loss by less than this share. */
const LEAST_GAIN = 0.004;
/** The length of a window in which losses are compared: a share of the planned steps, and at least LEAST_WINDOW. */
const WINDOW_SHARE = 0.05;
const LEAST_WINDOW = 20;
/** The length of a shortened rest, as a share of the steps done. It is needed to average out the noise of large steps. */
const REST_SHARE = 0.25;

/** The rates of a step. */
export interface Rates {
  /** The rate of the bases: about twice the distance that an entry moves in a step (root mean square, in units of σ). */
  readonly rate: number;
  /** Falls from 1 at the start to 0 at the end. */
  readonly decay: number;
  readonly momentum: number;
}

/** The progress of one run. */
export class Schedule {
  /** The done share of the plan, 0 … 1. */
  private progress = 0;
  private pace: number;
  private done = 0;
  private readonly rate: number;
  private readonly momentumDecay: number;
  private readonly window: number;
  private best = Number.POSITIVE_INFINITY;
  private bestBefore = Number.POSITIVE_INFINITY;
  private hurried = false;

  constructor(
    private readonly steps: number,
    activation: Activation,
    rate?: number,
  ) {
    this.pace = 1 / steps;
    this.rate = rate ?? defaultRate(steps, activation);
    this.momentumDecay = Math.log((1 - lastMomentum(steps)) / (1 - FIRST_MOMENTUM));
    this.window = Math.max(LEAST_WINDOW, Math.round(WINDOW_SHARE * steps));
  }

  /** The state of this schedule, for `restore`. */
  get position(): number[] {
    return [this.progress, this.pace, this.done, this.best, this.bestBefore, Number(this.hurried)];
  }

  restore(position: readonly number[]): void {
    const [progress, pace, done, best, bestBefore, hurried] = position as [
      number,
      number,
      number,
      number,
      number,
      number,
    ];
    Object.assign(this, { progress, pace, done, best, bestBefore, hurried: hurried === 1 });
  }

  get finished(): boolean {
    return this.done >= this.steps || this.progress > 1 - 1e-9;
  }

  /** The number of steps that the run is now expected to take. */
  get expectedSteps(): number {
    return Math.min(this.steps, this.done + Math.ceil((1 - this.progress) / this.pace - 1e-9));
  }

  get rates(): Rates {
    const { progress } = this;
    return {
      rate: this.rate,
      decay: (1 - progress) ** DECAY_POWER,
      momentum: 1 - (1 - FIRST_MOMENTUM) * Math.exp(this.momentumDecay * progress),
    };
  }

  /** Notes that a step was taken. `loss` is the loss before it. */
  advance(loss: number): void {
    this.done++;
    this.progress += this.pace;
    this.best = Math.min(this.best, loss);
    if (this.hurried || this.done % this.window !== 0) return;
    const gain = 1 - this.best / this.bestBefore;
    if (gain * ((this.steps - this.done) / this.window) < LEAST_GAIN) this.hurry();
    this.bestBefore = this.best;
  }

  private hurry(): void {
    this.hurried = true;
    const left = Math.max(LEAST_WINDOW, REST_SHARE * this.done);
    this.pace = Math.max(this.pace, (1 - this.progress) / left);
  }
}
