import type { Engine, EngineTensor } from '../engine/engine.js';
import type { Problem, Targets } from './problem.js';

export interface BatchRange {
  readonly first: number;
  readonly count: number;
}

/** Experts 0 … n−1 in batches of at most `size`, as even as can be. */
export function splitBatches(experts: number, size: number): BatchRange[] {
  const batches = Math.ceil(experts / Math.max(1, size));
  return Array.from({ length: batches }, (_, i) => {
    const first = Math.floor((i * experts) / batches);
    return { first, count: Math.floor(((i + 1) * experts) / batches) - first };
  });
}

/** Experts `first` … as one (count, p, d) tensor. */
export function stackTargets(
  engine: Engine,
  { rows, cols }: Problem,
  targets: Targets,
  first: number,
  count: number,
): EngineTensor {
  const size = rows * cols;
  const stacked = new Float32Array(count * size);
  for (let e = 0; e < count; e++) targets.read(first + e, stacked.subarray(e * size, (e + 1) * size));
  return engine.tensor(stacked, [count, rows, cols]);
}
