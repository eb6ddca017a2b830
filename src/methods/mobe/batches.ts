import type { Engine, EngineFacts, EngineTensor } from '../../engine/engine.js';
import { elements } from '../../engine/ops.js';
import { TensorTooLargeError } from '../../errors.js';
import { formatBytes } from '../../format.js';
import type { MetricForm } from '../method.js';
import { metricShapes } from './metric.js';
import type { Problem } from './problem.js';

/** A range of experts, or of bases. */
export interface BatchRange {
  readonly first: number;
  readonly count: number;
}

/** Splits 0 … n−1 into ranges of at most `size`, as evenly as possible. */
export function splitBatches(n: number, size: number): BatchRange[] {
  const batches = Math.ceil(n / Math.max(1, size));
  return Array.from({ length: batches }, (_, i) => {
    const first = Math.floor((i * n) / batches);
    return { first, count: Math.floor(((i + 1) * n) / batches) - first };
  });
}

/**
 * The most experts in a batch for which every tensor of a step fits the engine's device. Throws `TensorTooLargeError` if the
 * bases, or one expert alone, do not fit.
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
  const expert = Math.max(4 * Math.max(p * d, r * d, p * r), matrices);
  check(`The bases of a group (${m} of ${r} × ${d})`, 4 * m * r * d, 'Use fewer --bases, or --engine onnx-cpu.');
  check('The matrices of the metric', matrices, 'Use --engine onnx-cpu.');
  check(`The weights of one expert (${p} × ${d})`, expert, 'Use --engine onnx-cpu.');
  return Math.floor(maxTensorBytes / expert);
}

/** The batches of a solver: at most of the requested size, and at most as large as the device allows. */
export const solverBatches = (
  engine: EngineFacts,
  problem: Problem,
  batchExperts: number,
  metric?: MetricForm,
): BatchRange[] => splitBatches(problem.experts, Math.min(batchExperts, largestBatch(problem, engine, metric)));

/** One array for each expert: its target, or a matrix of the metric. */
interface ExpertArrays {
  read(expert: number, target: Float32Array): void;
  /** Called for each expert whose array is now kept here. */
  forget?(expert: number): void;
  /** An expert's array where it is in memory. It is used without a copy if a batch has one expert. */
  view?(expert: number): Float32Array;
  /** Whether all experts share one array. It is read once, and its tensor is (1, …shape). */
  readonly shared?: boolean;
}

/**
 * Gives the arrays of a batch's experts as (count, …shape) tensors. They are read once and kept, or read again for each batch
 * into the same memory.
 */
export class StackedExperts {
  private readonly hold: boolean;
  /** Tensors by their first expert. If they are not kept, only that of the last batch. */
  private readonly tensors = new Map<number, EngineTensor>();
  /** Memory by batch size. */
  private readonly scratch = new Map<number, Float32Array>();

  constructor(
    private readonly engine: Engine,
    private readonly arrays: ExpertArrays,
    private readonly shape: readonly number[],
    hold: boolean,
  ) {
    this.hold = hold || arrays.shared === true;
  }

  /** The tensor of a batch. It is valid until the call for another batch. The caller must not dispose of it. */
  get(range: BatchRange): EngineTensor {
    const { first, count } = this.arrays.shared ? { first: 0, count: 1 } : range;
    const known = this.tensors.get(first);
    if (known) return known;
    if (!this.hold) this.dispose();
    const size = elements(this.shape);
    const only = count === 1 ? this.arrays.view?.(first) : undefined;
    if (only) {
      const tensor = this.engine.tensor(only, [1, ...this.shape]);
      this.tensors.set(first, tensor);
      return tensor;
    }
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
