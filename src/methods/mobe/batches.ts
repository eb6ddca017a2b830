import type { Engine, EngineFacts, EngineTensor } from '../../engine/engine.js';
import { TensorTooLargeError } from '../../errors.js';
import { formatBytes } from '../../format.js';
import type { Targets } from '../method.js';
import type { Problem } from './problem.js';

export interface BatchRange {
  readonly first: number;
  readonly count: number;
}

/** Experts 0 … n−1 in batches of at most `size`, as even as can be. */
function splitBatches(experts: number, size: number): BatchRange[] {
  const batches = Math.ceil(experts / Math.max(1, size));
  return Array.from({ length: batches }, (_, i) => {
    const first = Math.floor((i * experts) / batches);
    return { first, count: Math.floor(((i + 1) * experts) / batches) - first };
  });
}

/**
 * How many experts of a problem a batch can have, so that every tensor of a step fits the engine's device. Throws
 * `TensorTooLargeError` where the bases, or one expert alone, do not.
 */
export function largestBatch(problem: Problem, { device, maxTensorBytes }: EngineFacts): number {
  if (maxTensorBytes === undefined) return Number.POSITIVE_INFINITY;
  const { rows: p, cols: d, bases: m, rank: r } = problem;
  const check = (what: string, bytes: number, remedy: string): void => {
    if (bytes > maxTensorBytes)
      throw new TensorTooLargeError(what, formatBytes(bytes), device, formatBytes(maxTensorBytes), remedy);
  };
  const expert = 4 * Math.max(p * d, r * d, p * r, r * r);
  check(`The bases of a group (${m} of ${r} × ${d})`, 4 * m * r * d, 'Use fewer --bases, or --engine onnx-cpu.');
  check(`The weights of one expert (${p} × ${d})`, expert, 'Use --engine onnx-cpu.');
  return Math.floor(maxTensorBytes / expert);
}

/** The batches of a solver: of at most the asked size, and never more than the device takes. */
export const solverBatches = (engine: EngineFacts, problem: Problem, batchExperts: number): BatchRange[] =>
  splitBatches(problem.experts, Math.min(batchExperts, largestBatch(problem, engine)));

/**
 * Hands out experts as (count, p, d) tensors: decoded once and kept, or anew into the same memory each time.
 */
export class StackedTargets {
  private readonly held = new Map<number, EngineTensor>();
  private passing: EngineTensor | undefined;
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
    this.passing?.dispose();
    const { rows, cols } = this.problem;
    const size = rows * cols;
    const stacked = (!this.hold && this.scratch.get(count)) || new Float32Array(count * size);
    for (let e = 0; e < count; e++) this.targets.read(first + e, stacked.subarray(e * size, (e + 1) * size));
    const tensor = this.engine.tensor(stacked, [count, rows, cols]);
    if (this.hold) {
      this.held.set(first, tensor);
      for (let e = 0; e < count; e++) this.targets.forget?.(first + e);
    } else {
      this.scratch.set(count, stacked);
      this.passing = tensor;
    }
    return tensor;
  }

  dispose(): void {
    this.passing?.dispose();
    for (const tensor of this.held.values()) tensor.dispose();
  }
}
