/**
 * How far a varpro run is, and what that makes of its rates. A run is planned for a number of steps; when the loss falls
 * so slowly that the steps left cannot bring much, the rest of the plan is gone through faster.
 */
import type { Activation } from './problem.js';

const FIRST_MOMENTUM = 0.5;
const DECAY_POWER = 0.6;

/**
 * Long runs want smaller steps and a longer memory: fitted at 100 to 2400 steps. silu's bases stay where it is all but
 * linear, tanh's spread over its bend, and that is farther to go. σ(x) is ½ + ½tanh(x/2), so its arguments are twice tanh's.
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

/** The rest is hurried when it would lower the loss by less than this share, at the pace of the last window. */
const LEAST_GAIN = 0.004;
/** Share of the planned steps that a window of comparison takes, and the fewest steps it may have. */
const WINDOW_SHARE = 0.05;
const LEAST_WINDOW = 20;
/** A hurried rest still takes this share of the steps done: it is there that the noise of large steps is averaged out. */
const REST_SHARE = 0.25;

export interface Rates {
  /** Of the bases: about twice the distance an entry moves in a step (root mean square, units of σ). */
  readonly rate: number;
  /** 1 at the start, 0 at the end. */
  readonly decay: number;
  readonly momentum: number;
}

export class Schedule {
  /** 0 … 1 of the plan. */
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

  /** What `advance` has made of it so far, to be put back by `restore`. */
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

  /** Steps done so far, and how many it will be as things stand. */
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

  /** One step was taken, from this loss. */
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
