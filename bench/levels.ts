/** Finds how long runs take to reach a loss. */

/** A point of a curve: [seconds, loss]. */
export type Point = readonly [number, number];

/** A loss that the reference reached, and its time. */
export interface Level {
  /** Steps of the reference. `last` is the end of its curve; the state that it keeps may be an earlier one. */
  readonly at: number | 'last';
  readonly loss: number;
  /** Undefined if only the reference's result is known. */
  readonly seconds?: number;
}

/** One of our runs. */
export interface Timed {
  readonly planned: number;
  readonly seconds: number;
  readonly loss: number;
}

/** A level, and our run that reached it. */
export interface Reached extends Level {
  /** The run with the fewest planned steps that reached the loss; absent if none did. */
  readonly ours?: { readonly planned: number; readonly seconds: number };
  /** Our time divided by the reference's. */
  readonly share?: number;
}

/** Replaces each loss by the least one so far. */
export function bestSoFar(curve: readonly Point[]): Point[] {
  let best = Number.POSITIVE_INFINITY;
  return curve.map(([seconds, loss]) => {
    best = Math.min(best, loss);
    return [seconds, best];
  });
}

/** At most `count` of the items, with growing distances. It always includes the first and the last. */
export function thin<T>(items: readonly T[], count: number): T[] {
  const indices = Array.from({ length: count }, (_, i) => Math.round(items.length ** (i / (count - 1))) - 1);
  return [...new Set(indices)].flatMap((index) => items.slice(index, index + 1));
}

/**
 * Finds the first run that reached a level.
 * @param runs sorted by planned steps, fewest first
 */
export function reach(level: Level, runs: readonly Timed[]): Reached {
  const run = runs.find(({ loss }) => loss <= level.loss);
  if (!run) return level;
  const ours = { planned: run.planned, seconds: run.seconds };
  return { ...level, ours, ...(level.seconds === undefined ? {} : { share: run.seconds / level.seconds }) };
}

/** The level that decides a race: the reference's result. */
export const goalOf = <L extends Level>(levels: readonly L[]): L | undefined =>
  levels.filter(({ at }) => at !== 'last').at(-1);

export const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;

/** The upper median. */
export const median = (values: readonly number[]): number =>
  [...values].sort((a, b) => a - b)[values.length >> 1] as number;
