/** How a model's share of the memory budget is spent. */
import { BudgetTooSmallError } from '../errors.js';
import { formatBytes } from '../format.js';
import type { Blueprint } from './architecture.js';
import { keptBytes } from './key-value-cache.js';
import { type Unit, unitBytes } from './weight-cache.js';

const MIB = 2 ** 20;

/** Node, this program and ONNX Runtime with its programs; measured (bench/inference.ts prints the peaks). */
export const PROCESS_BYTES = 150 * MIB;
/** Headers and index, per tensor of the checkpoint; measured at 60 000 tensors. */
export const TENSOR_BYTES = 1200;

/** Scores of a chunk, before and after softmax and while it is computed; logits of a chunk of tokens twice. */
const WORKING_BYTES = 96 * MIB;
/** What a token's activations take at once in numbers, as a multiple of the hidden size: states, norms, rows of experts. */
const STATES_PER_TOKEN = 12;
/** Freed memory comes back late and in pieces: of what is counted, so much more was measured. */
const OVERHEAD = 1.1;

export interface ModelMemory {
  /** For the weight cache. */
  readonly weightBytes: number;
  /** Of those, for weights that every token needs. */
  readonly keptWeightBytes: number;
  /** All weights as f32, what factors of experts become included. */
  readonly wholeBytes: number;
}

/**
 * First come keys and values of the tokens and a call's activations, then the largest weights that are needed at once, then
 * whatever else fits. Throws `BudgetTooSmallError` where the first two do not.
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
