import type { Engine, EngineFacts, EngineTensor } from '../../engine/engine.js';
import { elements } from '../../engine/ops.js';
import { TensorTooLargeError } from '../../errors.js';
import { formatBytes } from '../../format.js';
import type { MetricForm } from '../method.js';
import { metricShapes } from './metric.js';
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
export function largestBatch(
  problem: Problem,
  { device, maxTensorBytes }: EngineFacts,
  metric: MetricForm = {},
): number {
  if (maxTensorBytes === undefined) return Number.POSITIVE_INFINITY;
  const { rows: p, cols: d, bases: m, rank: r } = problem;
  const check = (what: string, bytes: number, remedy: string): void => {
    if (bytes > maxTensorBytes)
      throw new TensorTooLargeError(what, formatBytes(bytes), device, formatBytes(maxTensorBytes), remedy);
  };
  const { C = [0], P = [0] } = metricShapes(problem, 1, metric);
  const matrices = 4 * Math.max(elements(C), elements(P));
  const expert = Math.max(4 * Math.max(p * d, r * d, p * r, r * r), matrices);
  check(`The bases of a group (${m} of ${r} × ${d})`, 4 * m * r * d, 'Use fewer --bases, or --engine onnx-cpu.');
  check('The matrices of the metric', matrices, 'Use --engine onnx-cpu.');
  check(`The weights of one expert (${p} × ${d})`, expert, 'Use --engine onnx-cpu.');
  return Math.floor(maxTensorBytes / expert);
}

/** The batches of a solver: of at most the asked size, and never more than the device takes. */
export const solverBatches = (
  engine: EngineFacts,
  problem: Problem,
  batchExperts: number,
  metric?: MetricForm,
): BatchRange[] => splitBatches(problem.experts, Math.min(batchExperts, largestBatch(problem, engine, metric)));

/** An array of each expert: targets, or a matrix of their metric. */
interface ExpertArrays {
  read(expert: number, target: Float32Array): void;
  /** Told of each expert whose array is kept here. */
  forget?(expert: number): void;
  /** One array serves all experts: it is read once, and its tensor is (1, …shape). */
  readonly shared?: boolean;
}

/**
 * Hands out the arrays of a batch's experts as (count, …shape) tensors: read once and kept, or anew into the same memory
 * for each batch.
 */
export class StackedExperts {
  private readonly hold: boolean;
  /** By first expert; the last batch alone, where they are not kept. */
  private readonly tensors = new Map<number, EngineTensor>();
  /** By batch size. */
  private readonly scratch = new Map<number, Float32Array>();

  constructor(
    private readonly engine: Engine,
    private readonly arrays: ExpertArrays,
    private readonly shape: readonly number[],
    hold: boolean,
  ) {
    this.hold = hold || arrays.shared === true;
  }

  /** Valid until a call for another batch; not to be disposed of. */
  get(range: BatchRange): EngineTensor {
    const { first, count } = this.arrays.shared ? { first: 0, count: 1 } : range;
    const known = this.tensors.get(first);
    if (known) return known;
    if (!this.hold) this.dispose();
    const size = elements(this.shape);
    const stacked = (!this.hold && this.scratch.get(count)) || new Float32Array(count * size);
    if (!this.hold) this.scratch.set(count, stacked);
    for (let e = 0; e < count; e++) this.arrays.read(first + e, stacked.subarray(e * size, (e + 1) * size));
    const tensor = this.engine.tensor(stacked, [count, ...this.shape]);
    this.tensors.set(first, tensor);
    if (this.hold) for (let e = 0; e < count; e++) this.arrays.forget?.(first + e);
    return tensor;
  }

  dispose(): void {
    for (const tensor of this.tensors.values()) tensor.dispose();
    this.tensors.clear();
  }
}
