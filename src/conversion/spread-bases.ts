/** Spreads parameters over projections so that the predicted loss is small: each goes where it lowers the loss most. */
import type { Projection } from '../models/family.js';

/** A size that a projection may have. */
export interface SizeChoice {
  readonly bases: number | 'dense';
  readonly parameters: number;
  /** The predicted loss. */
  readonly loss: number;
}

/** A projection and its sizes, which rise in parameters. */
export interface SpreadProjection {
  readonly layer: number;
  readonly projection: Projection;
  readonly choices: readonly SizeChoice[];
}

/** Where to stop. */
export interface SpreadLimits {
  /** The most parameters of all projections together. */
  readonly parameters?: number | undefined;
  /** The loss that is small enough. */
  readonly loss?: number | undefined;
}

export interface Spread {
  /** The size of each projection. */
  readonly chosen: readonly SizeChoice[];
  readonly parameters: number;
  readonly loss: number;
  /** Parameters and loss after each step, from the smallest sizes on. */
  readonly path: ReadonlyArray<readonly [parameters: number, loss: number]>;
}

interface Step {
  /** The place of the new size among the choices. */
  readonly to: number;
  readonly parameters: number;
  readonly gain: number;
}

/**
 * Starts with the smallest sizes. Then it always takes the step with the largest fall of the loss for each parameter, among all
 * steps to any larger size that the limit allows. A step may skip sizes: if only the dense form is much better, a single basis
 * more says nothing about it. The first of equal steps is taken, so the result is deterministic.
 */
export function spreadBases(projections: readonly SpreadProjection[], limits: SpreadLimits): Spread {
  const { parameters: most = Number.POSITIVE_INFINITY, loss: enough = 0 } = limits;
  const at = projections.map(() => 0);
  const choice = (i: number): SizeChoice => projections[i]?.choices[at[i] as number] as SizeChoice;
  const sum = (key: 'parameters' | 'loss'): number => projections.reduce((total, _, i) => total + choice(i)[key], 0);
  let parameters = sum('parameters');
  let loss = sum('loss');
  const path: Array<[number, number]> = [[parameters, loss]];
  const steps = projections.map(({ choices }) => bestStep(choices, 0, most - parameters));
  while (loss > enough) {
    let best = -1;
    for (const [i, { choices }] of projections.entries()) {
      const known = steps[i];
      if (known && known.parameters > most - parameters)
        steps[i] = bestStep(choices, at[i] as number, most - parameters);
      const step = steps[i];
      if (step && (best < 0 || step.gain > (steps[best] as Step).gain)) best = i;
    }
    const step = steps[best];
    if (!step) break;
    at[best] = step.to;
    parameters += step.parameters;
    loss = sum('loss'); // not by differences, whose rounding errors would add up
    steps[best] = bestStep((projections[best] as SpreadProjection).choices, step.to, most - parameters);
    path.push([parameters, loss]);
  }
  return { chosen: projections.map((_, i) => choice(i)), parameters, loss, path };
}

/** The step from a size with the largest gain for each parameter that it adds; undefined if none gains or is small enough. */
function bestStep(choices: readonly SizeChoice[], from: number, room: number): Step | undefined {
  const here = choices[from] as SizeChoice;
  let best: Step | undefined;
  for (let to = from + 1; to < choices.length; to++) {
    const there = choices[to] as SizeChoice;
    const parameters = there.parameters - here.parameters;
    const gain = (here.loss - there.loss) / parameters;
    if (parameters <= room && gain > (best?.gain ?? 0)) best = { to, parameters, gain };
  }
  return best;
}

/** At most `points` of a path, evenly spaced in parameters, with its ends. */
export function samplePath(path: Spread['path'], points: number): Spread['path'] {
  const [first, last] = [path[0]?.[0] ?? 0, path.at(-1)?.[0] ?? 0];
  const spacing = (last - first) / (points - 1);
  let next = first;
  return path.filter(([parameters], i) => {
    if (parameters < next && i < path.length - 1) return false;
    next = first + (Math.floor((parameters - first) / spacing) + 1) * spacing;
    return true;
  });
}
