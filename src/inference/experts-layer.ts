/** Runs a layer of experts. It routes each token and runs each chosen expert once, for all its tokens together. */
import type { ExpertsLayer } from './architecture.js';
import type { Tensors } from './attention.js';
import { beforeExperts, gated } from './feed-forward.js';
import { type Routing, route } from './router.js';
import type { Runner } from './runner.js';
import type { Unit, WeightCache } from './weight-cache.js';

/** Tools and settings of one call. */
export interface ExpertsCall {
  readonly runner: Runner;
  readonly cache: WeightCache;
  readonly epsilon: number;
  /** The layer's weights except the routed experts'. */
  readonly unit: Unit;
  /** (n); undefined if the layer has none. */
  readonly bias: Float32Array | undefined;
  /** Called before each expert. */
  readonly onExpert: () => void;
  readonly observe?: ExpertsObserver | undefined;
}

/** The input of a layer's experts, and what the router chose. */
export interface ExpertsObservation {
  /** (t, d): the normalised input of the router and of all experts. */
  readonly x: Float32Array;
  readonly routing: Routing;
}

/** Called before a layer's experts run. It may keep the arrays, but not change them. */
export type ExpertsObserver = (observation: ExpertsObservation) => void;

/** hidden (t, d) → (t, d): the sum of the residual, the routed experts' and the shared experts' outputs. */
export async function runExperts(
  { weights, rule, experts }: ExpertsLayer,
  hidden: Float32Array,
  { runner, cache, epsilon, unit, bias, onExpert, observe }: ExpertsCall,
): Promise<Float32Array> {
  const width = weights.norm.shape[0] as number;
  const tokens = hidden.length / width;
  const sizes = { tokens, width, experts: experts.count, sharedRows: weights.gate?.shape[0] ?? 0, epsilon };
  const { x, logits, base } = await cache.with(unit, (tensors: Tensors) =>
    runner.run(beforeExperts, sizes, { ...tensors, hidden }, ['x', 'logits', 'base']),
  );
  const routing = route(rule, logits, experts.count, bias);
  observe?.({ x, routing });
  const chosen = byExpert(routing.experts);
  experts.expect(chosen.map(([expert]) => expert).filter((expert) => !isKept(cache, experts.units(expert).mixed)));
  for (const [expert, places] of chosen) {
    onExpert();
    const room = paddedRows(places.length, tokens);
    const rows = gatherRows(x, places, rule.expertsPerToken, width, room);
    const gatedSizes = { tokens: room, width, rows: experts.rows, ranks: experts.ranks };
    const { own, mixed } = experts.units(expert);
    const run = (factors: Tensors) =>
      cache.with(own, (tensors: Tensors) => runner.run(gated, gatedSizes, { ...tensors, ...factors, x: rows }, ['y']));
    const { y } = await (mixed ? cache.with(mixed, run) : run({}));
    addWeighted(base, y, places, routing.weights, rule.expertsPerToken, width);
  }
  experts.expect([]);
  return base;
}

const isKept = (cache: WeightCache, unit: Unit | undefined): boolean => unit === undefined || cache.has(unit.key);

/** The inputs of the tokens at these places of the routing: x (t, d) → (room, d), padded with zeros. */
export function gatherRows(
  x: Float32Array,
  places: readonly number[],
  expertsPerToken: number,
  width: number,
  room: number,
): Float32Array {
  const rows = new Float32Array(room * width);
  for (const [i, place] of places.entries()) {
    const token = Math.floor(place / expertsPerToken);
    rows.set(x.subarray(token * width, (token + 1) * width), i * width);
  }
  return rows;
}

/** Adds an expert's outputs y, a row for each place, to the sum (t, d) of their tokens, times the routing's weights. */
export function addWeighted(
  sum: Float32Array,
  y: Float32Array,
  places: readonly number[],
  weights: Float32Array,
  expertsPerToken: number,
  width: number,
): void {
  for (const [i, place] of places.entries()) {
    const start = Math.floor(place / expertsPerToken) * width;
    const weight = weights[place] as number;
    for (let j = 0; j < width; j++) sum[start + j] = (sum[start + j] as number) + weight * (y[i * width + j] as number);
  }
}

/** The positions in the routing of each chosen expert, both in rising order. */
export function byExpert(experts: Int32Array): Array<[expert: number, places: number[]]> {
  const places = new Map<number, number[]>();
  for (const [place, expert] of experts.entries()) {
    const own = places.get(expert);
    if (own) own.push(place);
    else places.set(expert, [place]);
  }
  return [...places].sort(([a], [b]) => a - b);
}

/** Rows are padded with zeros to a power of two, so that few programs are compiled. */
export const powerOfTwo = (count: number): number => 2 ** Math.ceil(Math.log2(count));

/**
 * Rows are padded with zeros to a power of two, so that few programs are compiled. One row of several tokens is padded too: a
 * product of a single row is summed in another order, and a token's result would depend on the tokens that it runs with.
 */
const paddedRows = (count: number, tokens: number): number => Math.max(Math.min(2, tokens), powerOfTwo(count));
