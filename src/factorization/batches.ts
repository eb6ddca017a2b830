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

/**
 * Hands out experts as (count, p, d) tensors: decoded once and kept, or anew into the same memory each time.
 */
export class StackedTargets {
  private readonly held = new Map<number, EngineTensor>();
  /** By batch size. */
  private readonly scratch = new Map<number, Float32Array>();

  constructor(
    private readonly engine: Engine,
    private readonly problem: Problem,
    private readonly targets: Targets,
    private readonly hold: boolean,
  ) {}

  /** Valid until the next call; not to be disposed of. */
  get({ first, count }: BatchRange): EngineTensor {
    const known = this.held.get(first);
    if (known) return known;
    const { rows, cols } = this.problem;
    const size = rows * cols;
    const stacked = (!this.hold && this.scratch.get(count)) || new Float32Array(count * size);
    for (let e = 0; e < count; e++) this.targets.read(first + e, stacked.subarray(e * size, (e + 1) * size));
    const tensor = this.engine.tensor(stacked, [count, rows, cols]);
    if (this.hold) this.held.set(first, tensor);
    else this.scratch.set(count, stacked);
    return tensor;
  }

  dispose(): void {
    for (const tensor of this.held.values()) tensor.dispose();
  }
}
