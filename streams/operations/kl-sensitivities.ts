/**
 * Sensitivities by running the model: the KL divergence of its predictions if one projection is replaced.
 *
 * A variant is the model with one projection replaced. Up to that layer's experts it computes what the original does, and their
 * changed output is the original's plus the change that `local` measures. So a variant begins after its layer, as the original's
 * hidden states plus this change, and then runs through the later layers with the original's weights. All variants of a batch go
 * through a layer together, and its weights are read once for all of them if they fit in memory, like in `calibrate`.
 *
 * With L layers and three projections a measurement runs 1.5·L² stream layers, and each batch reads the layers after its first
 * variant: variants in b batches read about (b + 1)/2 times the model, besides the experts of layers with probes once for the
 * changes.
 */
import { chooseNumbers } from '../../src/calibration/choose-numbers.js';
import { readTokens } from '../../src/calibration/output-differences.js';
import { projectionKey } from '../../src/conversion/group-plan.js';
import { inWhole, OptionError } from '../../src/errors.js';
import { type LanguageModel, openLanguageModel } from '../../src/inference/language-model.js';
import { divergence, predict } from '../../src/inference/scores.js';
import { sizesOf } from '../../src/models/detect.js';
import type { Probe } from './probe-weights.js';
import { arrangeProbes, changesOf } from './probed-outputs.js';
import type { Measurement } from './sensitivity-measurement.js';

/** The shares of the memory: half for the model, a quarter each for hidden states and for the changes of a layer's output. */
const SHARES = { model: 2, streams: 4, changes: 4 };
/** The original's hidden states, a copy of them for the next batch, and those of a call. */
const OTHER_STREAMS = 3;
/** Tokens of a sequence. On the fixture 32 and 64 do no better. */
const USUAL_LENGTH = 256;
/** The most bytes of logits that are held at once. */
const LOGITS_BYTES = 16 * 2 ** 20;

/** The sequences that are run. t = sequences · length. */
interface ChosenTokens {
  readonly length: number;
  /** Their places in the record, rising. */
  readonly places: Int32Array;
  /** The token numbers of each sequence. */
  readonly sequences: readonly number[][];
}

/** The original's hidden states (t, d) after a layer. */
interface Position {
  readonly layer: number;
  readonly hidden: Float32Array;
}

/** Measures in batches of variants. Finished batches are kept. */
export async function measureKl(measurement: Measurement): Promise<Map<string, number>> {
  const { probes, bytes, mostVariants, parts, onProgress } = measurement;
  const variants = [...probes.values()].flat();
  const [first] = variants;
  const found = new Map<string, number>();
  if (!first) return found;
  const width = sizesOf(measurement.layer(first.layer)).cols;
  const streamBytes = 4 * width;
  const chosen = await chooseSequences(measurement, (wanted) =>
    Math.min(
      ...[...probes].map(
        ([layer, own]) => arrangeProbes(measurement, { layer, width }, own, wanted, SHARES.changes).tokens,
      ),
      Math.floor(bytes / SHARES.streams / ((OTHER_STREAMS + 1) * streamBytes)),
    ),
  );
  const tokens = chosen.places.length;
  const fitting = Math.floor(bytes / SHARES.streams / (tokens * streamBytes)) - OTHER_STREAMS;
  const most = Math.min(fitting, mostVariants, variants.length);
  const batches = batchesOf(variants, most);
  const model = openModel(measurement, (most + 1) * tokens, chosen.length);
  let original: Original = {};
  try {
    for (const [i, batch] of batches.entries()) {
      const part = `kl-${variants.indexOf(batch[0] as Probe)}-${batch.length}`;
      let values = await parts.find(part);
      if (!values) {
        const next = batches[i + 1]?.[0]?.layer;
        const run = { ...measurement, onProgress: (share: number) => onProgress(i + share, batches.length) };
        ({ values, original } = await runBatch(run, model, chosen, batch, original, next));
        await parts.keep(part, values);
      }
      for (const [key, value] of Object.entries(values)) found.set(key, value);
      onProgress(i + 1, batches.length);
    }
    return found;
  } finally {
    await model.close();
  }
}

function openModel(
  { source, runner, bytes, reservedBytes, signal }: Measurement,
  tokens: number,
  sequenceLength: number,
): LanguageModel {
  const own = { runner, bytes: bytes / SHARES.model, signal };
  try {
    return openLanguageModel(source, { ...own, keptTokens: tokens, batchTokens: tokens, sequenceLength });
  } catch (error) {
    throw inWhole(error, bytes + reservedBytes, (part) => SHARES.model * part + reservedBytes);
  }
}

/** Results of the original model from the batches before. */
interface Original {
  /** After the layer at which the next batch begins. */
  readonly position?: Position | undefined;
  /** Hidden states after the last layer. */
  readonly final?: Float32Array | undefined;
}

/** The beginnings of some sequences. Short ones are from more texts; they are longer only if the record has too few sequences. */
async function chooseSequences(
  { record, tokens: most, seed }: Measurement,
  fitting: (wanted: number) => number,
): Promise<ChosenTokens> {
  const { sequences: all, length: whole } = record.facts;
  const tokens = fitting(Math.min(most, all * whole));
  const length = Math.min(whole, tokens, Math.max(USUAL_LENGTH, Math.ceil(tokens / all)));
  if (length < 2) throw new OptionError('--sensitivity', 'kl needs sequences of at least two tokens');
  const numbers = chooseNumbers(all, Math.floor(tokens / length), seed);
  const held = await record.tokens();
  return {
    length,
    places: Int32Array.from({ length: numbers.length * length }, (_, i) => {
      const number = numbers[Math.floor(i / length)] as number;
      return number * whole + (i % length);
    }),
    sequences: Array.from(numbers, (number) => Array.from(held.subarray(number * whole, number * whole + length))),
  };
}

function batchesOf(variants: readonly Probe[], most: number): Probe[][] {
  const batches: Probe[][] = [];
  for (let first = 0; first < variants.length; first += most) batches.push(variants.slice(first, first + most));
  return batches;
}

/** @param next the layer at which the next batch begins */
async function runBatch(
  measurement: Measurement,
  model: LanguageModel,
  chosen: ChosenTokens,
  batch: readonly Probe[],
  { position, final: known }: Original,
  next: number | undefined,
): Promise<{ values: Record<string, number>; original: Original }> {
  const { record, onProgress } = measurement;
  const last = batch.at(-1)?.layer as number;
  const begin = position?.layer ?? 0;
  const original = position?.hidden ?? (await model.embed(chosen.sequences.flat()));
  const streams = new Map<Probe, Float32Array>();
  let kept: Position | undefined;
  for (let layer = begin; layer < model.layers; layer++) {
    const isNeeded = !known || layer <= Math.max(last, next ?? 0);
    const runs = isNeeded && layer !== position?.layer;
    await runStreams(model, layer, chosen, [...(runs ? [original] : []), ...streams.values()]);
    const own = batch.filter((probe) => probe.layer === layer);
    if (own.length) {
      const routed = await readTokens(await record.layer(layer), chosen.places);
      const { width } = routed;
      const { together } = arrangeProbes(measurement, { layer, width }, own, chosen.places.length, SHARES.changes);
      for (const probes of together) {
        const { changes } = await changesOf(measurement, layer, routed, probes);
        for (const [i, stream] of changes.entries()) {
          for (let j = 0; j < stream.length; j++) stream[j] = (stream[j] as number) + (original[j] as number);
          streams.set(probes[i] as Probe, stream);
        }
      }
    }
    if (layer === next) kept = { layer, hidden: original.slice() };
    onProgress((layer - begin + 1) / (model.layers - begin + 1), 1);
  }
  const final = known ?? original;
  const values = await divergences(model, chosen, final, streams, measurement.pause);
  return { values, original: { position: kept, final } };
}

/** Runs hidden states (t, d) through a layer, in place. */
async function runStreams(
  model: LanguageModel,
  layer: number,
  { length, sequences }: ChosenTokens,
  streams: readonly Float32Array[],
): Promise<void> {
  const size = length * model.width;
  const pieces = streams.flatMap((stream) =>
    sequences.map((tokens, i) => ({ tokens, hidden: stream.subarray(i * size, (i + 1) * size) })),
  );
  const most = Math.max(1, Math.floor(model.memory.batchTokens / length));
  for (let first = 0; first < pieces.length; first += most) {
    const part = pieces.slice(first, first + most);
    const hidden = new Float32Array(part.length * size);
    for (const [i, piece] of part.entries()) hidden.set(piece.hidden, i * size);
    const after = await model.runLayer(
      layer,
      hidden,
      part.map(({ tokens }) => ({ sequence: model.newSequence(), tokens })),
    );
    for (const [i, piece] of part.entries()) piece.hidden.set(after.subarray(i * size, (i + 1) * size));
  }
  // Weights that stay cached would leave the next layer too little room.
  if (model.memory.weightBytes < model.memory.wholeBytes) model.forgetWeights();
}

/** The mean KL divergence of each variant's predictions. The last token of a sequence predicts nothing that is known. */
async function divergences(
  model: LanguageModel,
  { length, sequences }: ChosenTokens,
  original: Float32Array,
  streams: ReadonlyMap<Probe, Float32Array>,
  pause: () => Promise<void>,
): Promise<Record<string, number>> {
  const { width, vocabulary } = model;
  const most = Math.max(1, Math.floor(LOGITS_BYTES / (8 * vocabulary)));
  const sums = new Map([...streams.keys()].map((probe) => [probe, 0]));
  for (let sequence = 0; sequence < sequences.length; sequence++) {
    for (let first = 0; first < length - 1; first += most) {
      await pause();
      const row = sequence * length + first;
      const count = Math.min(most, length - 1 - first);
      const predictions = async (hidden: Float32Array) => {
        const logits = await model.logits(hidden.slice(row * width, (row + count) * width));
        return (token: number) => predict(logits.subarray(token * vocabulary, (token + 1) * vocabulary));
      };
      const truth = await predictions(original);
      const truths = Array.from({ length: count }, (_, token) => truth(token));
      for (const [probe, hidden] of streams) {
        const own = await predictions(hidden);
        for (const [token, it] of truths.entries())
          sums.set(probe, (sums.get(probe) as number) + divergence(it, own(token)));
      }
    }
  }
  const count = sequences.length * (length - 1);
  return Object.fromEntries([...sums].map(([probe, sum]) => [projectionKey(probe), sum / count]));
}
