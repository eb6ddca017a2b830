/** Divides a running model's memory budget. */
import { BudgetTooSmallError } from '../errors.js';
import type { Blueprint } from './architecture.js';
import type { LayerExperts } from './experts.js';
import { keptBytes } from './key-value-cache.js';
import type { Holder } from './resident-weights.js';
import { type KeptBytes, type Unit, unitBytes } from './weight-cache.js';

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
/** The most experts beside one whose F is made with its own. Each tile of bases is then decoded once for all of them. */
const AHEAD = 7;
/** Measured over counted memory: freed memory returns late and in pieces. */
const OVERHEAD = 1.1;
/** Tokens of a call beyond which larger calls are not faster, if a layer's weights stay in memory from call to call. */
const ENOUGH_TOKENS = 8192;
/** The most bytes of hidden states in one call. Arrays and the engine's tensors may not be much larger. */
const MAX_STATE_BYTES = 2 ** 30;

/** The weights' part of the budget. */
export interface ModelMemory {
  /** Bytes for weights in all. */
  readonly weightBytes: number;
  /** The part for decoded weights, those in use included. */
  readonly decodedBytes: number;
  /** The part of `decodedBytes` that weights of each kind may keep. */
  readonly keptBytes: KeptBytes;
  /** The part for F that is made ahead (`LayerExperts.expect`). */
  readonly aheadBytes: number;
  /** The part for weights of experts that stay as they are stored. */
  readonly residentBytes: Readonly<Record<Holder, number>>;
  /** Bytes of all weights decoded, including the mixed factors of experts. */
  readonly wholeBytes: number;
  /** The least budget with which no weight is read twice. */
  readonly readOnceBytes: number;
  /** The most tokens of one call. */
  readonly batchTokens: number;
  /** Bytes of the budget that a pass leaves free, because it forgets the weights of each layer before the next. */
  readonly spareBytes: number;
}

/** Bytes of weights of one layer, or of several together. */
interface Weights {
  /** Weights that every token needs, decoded. */
  readonly always: number;
  /** The experts' own weights, decoded and as stored. */
  readonly own: number;
  readonly storedOwn: number;
  /** The weights that experts share, as stored. They are decoded in tiles. */
  readonly shared: number;
  /** F of all experts. */
  readonly mixed: number;
}

function weightsOf(always: number, experts: LayerExperts | undefined): Weights {
  if (!experts) return { always, own: 0, storedOwn: 0, shared: 0, mixed: 0 };
  const { own, mixed } = experts.units(0);
  return {
    always,
    own: experts.count * unitBytes(own),
    storedOwn: experts.storedBytes.own,
    shared: experts.storedBytes.shared,
    mixed: mixed ? experts.count * unitBytes(mixed) : 0,
  };
}

const add = (a: Weights, b: Weights): Weights =>
  Object.fromEntries(
    Object.entries(a).map(([name, bytes]) => [name, bytes + b[name as keyof Weights]]),
  ) as unknown as Weights;

const decoded = ({ always, own, shared, mixed }: Weights): number => always + own + shared + mixed;

/** The least bytes for weights with which none is read twice. */
function readOnce(largest: number, { always, storedOwn, shared }: Weights, mixedUnit: number): number {
  const stored = storedOwn + shared;
  return largest + always + stored + Math.min(AHEAD * mixedUnit, Math.ceil(stored / 3));
}

/**
 * Divides the bytes for weights. First come weights that every token needs, decoded; then some memory for F that is made ahead;
 * then weights of experts as they are stored, so that none is read twice; then F, which costs most to make; then other decoded weights of experts, which replace the stored ones.
 * @param largest bytes that are in use at once
 * @param mixedUnit bytes of the F of one expert
 */
function divide(
  bytes: number,
  largest: number,
  { always, own, storedOwn, shared, mixed }: Weights,
  mixedUnit: number,
): Pick<ModelMemory, 'decodedBytes' | 'keptBytes' | 'residentBytes' | 'aheadBytes'> {
  const kept = { always: Math.min(always, bytes - largest), mixed: 0, expert: 0 };
  const aheadBytes = Math.min(AHEAD * mixedUnit, Math.floor((bytes - largest - kept.always) / 4));
  let left = bytes - largest - kept.always - aheadBytes - storedOwn - shared;
  if (left > 0) {
    kept.mixed = Math.min(mixed, left);
    left -= kept.mixed;
    const more = own - storedOwn;
    kept.expert = left >= more ? own : Math.floor((left / more) * own);
  }
  const decodedBytes = largest + kept.always + kept.mixed + kept.expert;
  const resident = bytes - decodedBytes - aheadBytes;
  const residentShared = Math.min(shared, resident);
  const residentBytes = { own: resident - residentShared, shared: residentShared };
  return { decodedBytes, keptBytes: kept, aheadBytes, residentBytes };
}

/**
 * Reserves memory for keys and values and for a call's activations, then for the largest weights that are needed at once. The
 * rest keeps weights (`divide`). Throws a
 * `BudgetTooSmallError` if the reserved memory alone exceeds the budget.
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
  const headBytes = head.map(unitBytes);
  let largest = Math.max(...headBytes, ...units.flatMap((it) => [it.attention, it.feedForward]).map(unitBytes));
  let rows = 0;
  let mixedUnit = 0;
  const layers = blueprint.layers.map(({ feedForward }, number) => {
    const { attention, feedForward: always } = units[number] as (typeof units)[number];
    const experts = feedForward.kind === 'experts' ? feedForward.experts : undefined;
    if (experts) {
      const { own, mixed } = experts.units(0);
      largest = Math.max(largest, unitBytes(own) + (mixed ? unitBytes(mixed) + experts.tileBytes : 0));
      rows = Math.max(rows, experts.rows);
      if (mixed) mixedUnit = Math.max(mixedUnit, unitBytes(mixed));
    }
    return weightsOf(unitBytes(attention) + unitBytes(always), experts);
  });
  const none = weightsOf(0, undefined);
  const whole = layers.reduce(
    add,
    weightsOf(
      headBytes.reduce((sum, it) => sum + it, 0),
      undefined,
    ),
  );
  const wholeBytes = decoded(whole);
  const largestOf = layers.reduce((most, it) => (decoded(it) > decoded(most) ? it : most), none);
  const largestLayer = decoded(largestOf);
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
  const fixed = activations + kept;
  const allowed = Math.floor((bytes - fixed) / OVERHEAD);
  // One byte more, because `allowed` is rounded down.
  if (allowed < largest) throw new BudgetTooSmallError(bytes, fixed + OVERHEAD * (largest + 1));
  const weightBytes = Math.min(allowed, largest + wholeBytes);
  // A pass keeps weights of one layer only, unless all can be kept.
  const divided = sequenceLength !== undefined && weightBytes < wholeBytes ? largestOf : whole;
  return {
    ...divide(weightBytes, largest, divided, mixedUnit),
    weightBytes,
    wholeBytes,
    readOnceBytes: Math.ceil(fixed + OVERHEAD * readOnce(largest, whole, mixedUnit)),
    batchTokens,
    spareBytes: Math.floor(OVERHEAD * Math.max(0, allowed - largestLayer - largest)),
  };
}
