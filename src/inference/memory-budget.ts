/** Divides a running model's memory budget. */
import { BudgetTooSmallError } from '../errors.js';
import { formatBytes } from '../format.js';
import type { Blueprint } from './architecture.js';
import { keptBytes } from './key-value-cache.js';
import { type Unit, unitBytes } from './weight-cache.js';

const MIB = 2 ** 20;

/** Memory of Node, this program, and ONNX Runtime with its compiled programs; measured (bench/inference.ts prints the peaks). */
export const PROCESS_BYTES = 150 * MIB;
/** Memory for headers and index, for each tensor of the checkpoint; measured with 60 000 tensors. */
export const TENSOR_BYTES = 1200;

/** Scores of a chunk before, during and after softmax, and two copies of the logits of a chunk of tokens. */
const WORKING_BYTES = 96 * MIB;
/** Numbers that one token's activations take at once, as a multiple of the hidden size: states, norms, rows of experts. */
const STATES_PER_TOKEN = 12;
/** Measured over counted memory: freed memory returns late and in pieces. */
const OVERHEAD = 1.1;

/** The weights' part of the budget. */
export interface ModelMemory {
  /** Bytes for the weight cache. */
  readonly weightBytes: number;
  /** The part of `weightBytes` that weights needed by every token may keep. */
  readonly keptWeightBytes: number;
  /** Bytes of all weights as f32, including the mixed factors of experts. */
  readonly wholeBytes: number;
}

/**
 * Reserves memory for keys and values and for a call's activations, then for the largest weights that are needed at once. The
 * rest caches other weights. Throws a `BudgetTooSmallError` if the reserved memory alone exceeds the budget.
 */
export function planModelMemory({
  blueprint,
  units,
  head,
  bytes,
  keptTokens,
  batchTokens,
}: {
  blueprint: Blueprint;
  units: ReadonlyArray<{ readonly attention: Unit; readonly feedForward: Unit }>;
  head: readonly Unit[];
  bytes: number;
  keptTokens: number;
  batchTokens: number;
}): ModelMemory {
  const width = blueprint.norm.shape[0] as number;
  const always = [...units.flatMap((it) => [it.attention, it.feedForward]), ...head].map(unitBytes);
  let largest = Math.max(...always);
  let wholeBytes = always.reduce((sum, it) => sum + it, 0);
  let rows = 0;
  for (const { feedForward } of blueprint.layers) {
    if (feedForward.kind === 'dense') continue;
    const { experts } = feedForward;
    const expert = unitBytes(experts.unit(0));
    const bases = experts.bases.map(unitBytes);
    largest = Math.max(largest, expert + Math.max(0, ...bases));
    wholeBytes += experts.count * expert + bases.reduce((sum, it) => sum + it, 0);
    rows = Math.max(rows, experts.rows);
  }
  const activations = 4 * batchTokens * (STATES_PER_TOKEN * width + 3 * rows) + WORKING_BYTES;
  const kept = keptBytes(
    blueprint.layers.map(({ attention }) => attention.cached),
    keptTokens,
  );
  const weightBytes = Math.floor((bytes - activations - kept) / OVERHEAD);
  if (weightBytes < largest) {
    const smallest = activations + kept + OVERHEAD * largest + PROCESS_BYTES;
    throw new BudgetTooSmallError(formatBytes(bytes + PROCESS_BYTES), `${Math.ceil(smallest / MIB)}MiB`);
  }
  return { weightBytes, keptWeightBytes: weightBytes - largest, wholeBytes };
}
