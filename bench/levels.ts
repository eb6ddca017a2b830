/** From curves and runs to "how long until this loss". */

/** [seconds, loss] */
export type Point = readonly [number, number];

/** A loss the reference reached, and when. */
export interface Level {
  /** The reference's steps; `last` is where its curve ends, while it keeps an earlier state. */
  readonly at: number | 'last';
  readonly loss: number;
  /** Undefined where only its result is known. */
  readonly seconds?: number;
}

export interface Timed {
  readonly planned: number;
  readonly seconds: number;
  readonly loss: number;
}

export interface Reached extends Level {
  /** The run that got there with the fewest planned steps. */
  readonly ours?: { readonly planned: number; readonly seconds: number };
  /** Of our time to the reference's. */
  readonly share?: number;
}

export function bestSoFar(curve: readonly Point[]): Point[] {
  let best = Number.POSITIVE_INFINITY;
  return curve.map(([seconds, loss]) => {
    best = Math.min(best, loss);
    return [seconds, best];
  });
}

/** At most about `count` of the items, ever further apart; the first and the last are among them. */
export function thin<T>(items: readonly T[], count: number): T[] {
  const indices = Array.from({ length: count }, (_, i) => Math.round(items.length ** (i / (count - 1))) - 1);
  return [...new Set(indices)].flatMap((index) => items.slice(index, index + 1));
}

/** `runs` by planned steps, fewest first. */
export function reach(level: Level, runs: readonly Timed[]): Reached {
  const run = runs.find(({ loss }) => loss <= level.loss);
  if (!run) return level;
  const ours = { planned: run.planned, seconds: run.seconds };
  return { ...level, ours, ...(level.seconds === undefined ? {} : { share: run.seconds / level.seconds }) };
}

/** The level that a race is about: the reference's result. */
export const goalOf = <L extends Level>(levels: readonly L[]): L | undefined =>
  levels.filter(({ at }) => at !== 'last').at(-1);

export const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;

export const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[values.length >> 1] as number;
