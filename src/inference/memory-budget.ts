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
/** As many more in a calibration pass: inputs that are encoded, and states that are read, hashed and written. */
const PASS_STATES_PER_TOKEN = 3;
/** Measured over counted memory: freed memory returns late and in pieces. */
const OVERHEAD = 1.1;
/** Tokens of a call beyond which larger calls are not faster, if a layer's weights stay in memory from call to call. */
const ENOUGH_TOKENS = 8192;
/** The most bytes of hidden states in one call. Arrays and the engine's tensors may not be much larger. */
const MAX_STATE_BYTES = 2 ** 30;

/** The weights' part of the budget. */
export interface ModelMemory {
  /** Bytes for the weight cache. */
  readonly weightBytes: number;
  /** The part of `weightBytes` that weights needed by every token may keep. */
  readonly keptWeightBytes: number;
  /** Bytes of all weights as f32, including the mixed factors of experts. */
  readonly wholeBytes: number;
  /** The most tokens of one call. */
  readonly batchTokens: number;
  /** Bytes of the budget that a pass leaves free, because it forgets the weights of each layer before the next. */
  readonly spareBytes: number;
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
  batchTokens: mostTokens,
  sequenceLength,
}: {
  blueprint: Blueprint;
  units: ReadonlyArray<{ readonly attention: Unit; readonly feedForward: Unit }>;
  head: readonly Unit[];
  bytes: number;
  keptTokens: number;
  batchTokens: number;
  sequenceLength?: number | undefined;
}): ModelMemory {
  const width = blueprint.norm.shape[0] as number;
  const always = [...units.flatMap((it) => [it.attention, it.feedForward]), ...head].map(unitBytes);
  let largest = Math.max(...always);
  let wholeBytes = always.reduce((sum, it) => sum + it, 0);
  let rows = 0;
  let largestLayer = 0;
  for (const [number, { feedForward }] of blueprint.layers.entries()) {
    const own = units[number] as (typeof units)[number];
    let layerBytes = unitBytes(own.attention) + unitBytes(own.feedForward);
    if (feedForward.kind === 'experts') {
      const { experts } = feedForward;
      const expert = unitBytes(experts.unit(0));
      const bases = experts.bases.map(unitBytes);
      const routed = experts.count * expert + bases.reduce((sum, it) => sum + it, 0);
      largest = Math.max(largest, expert + Math.max(0, ...bases));
      wholeBytes += routed;
      layerBytes += routed;
      rows = Math.max(rows, experts.rows);
    }
    largestLayer = Math.max(largestLayer, layerBytes);
  }
  const cached = blueprint.layers.map(({ attention }) => attention.cached);
  const statesPerToken = STATES_PER_TOKEN + (sequenceLength === undefined ? 0 : PASS_STATES_PER_TOKEN);
  const tokenBytes = 4 * (statesPerToken * width + 3 * rows);
  let batchTokens = mostTokens;
  let kept = keptBytes(cached, keptTokens);
  if (sequenceLength !== undefined) {
    const keptBySequence = Math.max(...cached.map((it) => keptBytes([it], sequenceLength)));
    // A layer whose weights do not fit is read again for each call, so calls are then as large as possible.
    const fits = 2 * OVERHEAD * largestLayer <= bytes;
    const weights = OVERHEAD * Math.max(largest, fits ? largestLayer : 0);
    const wanted = fits ? Math.min(mostTokens, ENOUGH_TOKENS) : mostTokens;
    const sequenceBytes = sequenceLength * tokenBytes + keptBySequence;
    const fitting = Math.min(
      Math.floor((bytes - WORKING_BYTES - weights) / sequenceBytes),
      Math.floor(MAX_STATE_BYTES / (4 * width * sequenceLength)),
      Math.floor(wanted / sequenceLength),
    );
    const sequences = Math.max(1, fitting);
    batchTokens = sequences * sequenceLength;
    kept = sequences * keptBySequence;
  }
  const activations = batchTokens * tokenBytes + WORKING_BYTES;
  const weightBytes = Math.floor((bytes - activations - kept) / OVERHEAD);
  if (weightBytes < largest) {
    const smallest = activations + kept + OVERHEAD * largest + PROCESS_BYTES;
    throw new BudgetTooSmallError(formatBytes(bytes + PROCESS_BYTES), `${Math.ceil(smallest / MIB)}MiB`);
  }
  const spareBytes = Math.floor(OVERHEAD * Math.max(0, weightBytes - largestLayer - largest));
  return { weightBytes, keptWeightBytes: weightBytes - largest, wholeBytes, batchTokens, spareBytes };
}
