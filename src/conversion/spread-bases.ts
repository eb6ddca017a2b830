/** Spreads parameters or bytes over projections so that the predicted loss is small: each goes where it lowers the loss most. */
import type { Projection } from '../models/family.js';

/** A size that a projection may have. */
export interface SizeChoice {
  readonly bases: number | 'dense';
  /** In parameters or in bytes, alike for all choices. */
  readonly size: number;
  /** The predicted loss. */
  readonly loss: number;
}

/** A projection and its choices, which rise in size. */
export interface SpreadProjection<C extends SizeChoice = SizeChoice> {
  readonly layer: number;
  readonly projection: Projection;
  readonly choices: readonly C[];
}

/** Where to stop. */
export interface SpreadLimits {
  /** The most of all projections together. */
  readonly size?: number | undefined;
  /** The loss that is small enough. */
  readonly loss?: number | undefined;
}

export interface Spread<C extends SizeChoice = SizeChoice> {
  /** The choice for each projection. */
  readonly chosen: readonly C[];
  readonly size: number;
  readonly loss: number;
  /** Size and loss after each step, from the smallest sizes on. */
  readonly path: ReadonlyArray<readonly [size: number, loss: number]>;
}

interface Step {
  /** The place of the new size among the choices. */
  readonly to: number;
  readonly size: number;
  readonly gain: number;
}

/**
 * Starts with the smallest sizes. Then it always takes the step with the largest fall of the loss for each parameter or byte, among all
 * steps to any larger size that the limit allows. A step may skip sizes: if only the dense form is much better, a single basis
 * more says nothing about it. So it goes along the lower convex hull of each projection's choices, until only smaller steps fit. The
 * first of equal steps is taken, so the result is deterministic.
 */
export function spreadBases<C extends SizeChoice>(
  projections: ReadonlyArray<SpreadProjection<C>>,
  limits: SpreadLimits,
): Spread<C> {
  const { size: most = Number.POSITIVE_INFINITY, loss: enough = 0 } = limits;
  const at = projections.map(() => 0);
  const choice = (i: number): C => projections[i]?.choices[at[i] as number] as C;
  const sum = (key: 'size' | 'loss'): number => projections.reduce((total, _, i) => total + choice(i)[key], 0);
  let size = sum('size');
  let loss = sum('loss');
  const path: Array<[number, number]> = [[size, loss]];
  const steps = projections.map(({ choices }) => bestStep(choices, 0, most - size));
  while (loss > enough) {
    let best = -1;
    for (const [i, { choices }] of projections.entries()) {
      const known = steps[i];
      if (known && known.size > most - size) steps[i] = bestStep(choices, at[i] as number, most - size);
      const step = steps[i];
      if (step && (best < 0 || step.gain > (steps[best] as Step).gain)) best = i;
    }
    const step = steps[best];
    if (!step) break;
    at[best] = step.to;
    size += step.size;
    loss = sum('loss'); // not by differences, whose rounding errors would add up
    steps[best] = bestStep((projections[best] as SpreadProjection).choices, step.to, most - size);
    path.push([size, loss]);
  }
  return { chosen: projections.map((_, i) => choice(i)), size, loss, path };
}

/** The step from a size with the largest gain for what it adds; undefined if none gains or is small enough. */
function bestStep(choices: readonly SizeChoice[], from: number, room: number): Step | undefined {
  const here = choices[from] as SizeChoice;
  let best: Step | undefined;
  for (let to = from + 1; to < choices.length; to++) {
    const there = choices[to] as SizeChoice;
    const size = there.size - here.size;
    const gain = (here.loss - there.loss) / size;
    if (size <= room && gain > (best?.gain ?? 0)) best = { to, size, gain };
  }
  return best;
}

/** Choices that rise in size, without those that are no better than a smaller one. */
export function usefulChoices<C extends SizeChoice>(choices: readonly C[]): C[] {
  let least = Number.POSITIVE_INFINITY;
  return [...choices]
    .sort((a, b) => a.size - b.size || a.loss - b.loss)
    .filter(({ loss }) => {
      if (loss >= least) return false;
      least = loss;
      return true;
    });
}

/** At most `points` of a path, evenly spaced in size, with its ends. */
export function samplePath(path: Spread['path'], points: number): Spread['path'] {
  const [first, last] = [path[0]?.[0] ?? 0, path.at(-1)?.[0] ?? 0];
  const spacing = (last - first) / (points - 1);
  let next = first;
  return path.filter(([size], i) => {
    if (size < next && i < path.length - 1) return false;
    next = first + (Math.floor((size - first) / spacing) + 1) * spacing;
    return true;
  });
}
