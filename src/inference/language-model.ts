/** A language model that runs from its checkpoint. Weights are read when they are needed and cached within a budget. */
import { setImmediate } from 'node:timers/promises';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import {
  InterruptedError,
  MissingExpertError,
  OptionError,
  TokenRangeError,
  UnsupportedModelError,
} from '../errors.js';
import { modelTypeOf } from '../models/native-forms.js';
import type { Architecture, Blueprint, DecoderLayer } from './architecture.js';
import type { Tensors } from './attention.js';
import { bailing, bailingV2 } from './bailing-decoder.js';
import { configReader } from './config-reader.js';
import { deepseekV2, deepseekV3 } from './deepseek-decoder.js';
import { findExperts, type LayerExperts } from './experts.js';
import { type ExpertsObserver, runExperts } from './experts-layer.js';
import { dense } from './feed-forward.js';
import { createHead } from './head.js';
import { KeyValueCache } from './key-value-cache.js';
import { type ModelMemory, planModelMemory } from './memory-budget.js';
import { qwen3Moe } from './qwen3-moe-decoder.js';
import { ResidentWeights } from './resident-weights.js';
import { rotation } from './rotary.js';
import type { Runner } from './runner.js';
import { type PlacedPart, placeParts, type SequencePart } from './sequence-parts.js';
import { findWeight, shapesOf, type Weight, WeightReader } from './weight.js';
import { type Unit, WeightCache } from './weight-cache.js';

/** Every architecture that can be run. */
export const ARCHITECTURES: readonly Architecture[] = [qwen3Moe, deepseekV2, deepseekV3, bailing, bailingV2];

/** Resources and limits of a model. */
export interface ModelOptions {
  readonly runner: Runner;
  /** Bytes for weights, activations, and cached keys and values. */
  readonly bytes: number;
  /** Total length of all sequences, in tokens. */
  readonly keptTokens: number;
  /** Most tokens of one call. */
  readonly batchTokens: number;
  /**
   * Tokens of a sequence, if layers are run one at a time (`runLayer`), each with new sequences. Keys and values of one layer are
   * then kept, and `memory.batchTokens` is reduced to as many whole sequences as the budget allows.
   */
  readonly sequenceLength?: number | undefined;
  /** Replaces the config's number. */
  readonly expertsPerToken?: number | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** An open model. Letters: t tokens, d width, v vocabulary. */
export interface LanguageModel {
  readonly layers: number;
  /** d */
  readonly width: number;
  /** v */
  readonly vocabulary: number;
  /** Most positions that the model was made for. */
  readonly context: number;
  readonly memory: ModelMemory;
  /** The number of routed experts of a layer, and of those that a token is sent to; undefined for a dense layer. */
  expertsOf(layer: number): { readonly count: number; readonly perToken: number } | undefined;
  newSequence(): KeyValueCache;
  /**
   * Runs all tokens through one layer after another, so that each layer's weights are read once. Yields the hidden
   * states (t, d) after each layer, with the parts' rows in order, and returns the last ones.
   */
  forward(parts: readonly SequencePart[]): AsyncGenerator<Float32Array, Float32Array>;
  /** token numbers → hidden states (t, d) before the first layer */
  embed(tokens: readonly number[]): Promise<Float32Array>;
  /**
   * Runs one layer: hidden states (t, d) before it → those after it, with the parts' rows in order. The given array is changed.
   * @param observe called if the layer has experts
   */
  runLayer(
    layer: number,
    hidden: Float32Array,
    parts: readonly SequencePart[],
    observe?: ExpertsObserver,
  ): Promise<Float32Array>;
  /** Forgets cached weights, when a layer will not be run again. */
  forgetWeights(): void;
  /** hidden states (t, d) of the last layer → logits (t, v) */
  logits(hidden: Float32Array): Promise<Float32Array>;
  /** Stored bytes read so far, and units of weights that were found in the cache (hits) or not (misses). */
  usage(): { bytesRead: number; hits: number; misses: number };
  close(): Promise<void>;
}

/** Opens a model. Throws an `InputError` if its architecture is unknown, a weight is missing, or the budget is too small. */
export function openLanguageModel(checkpoint: Checkpoint, options: ModelOptions): LanguageModel {
  const { runner, signal } = options;
  const reader = new WeightReader(checkpoint.files, () => resident);
  const tools = { reader, runner, cache: () => cache, aheadBytes: () => memory.aheadBytes };
  const blueprint = drawBlueprint(checkpoint, options, tools);
  const { embedding, layers, epsilon } = blueprint;
  const [vocabulary, width] = embedding.shape as [number, number];
  const head = createHead(blueprint, tools);
  const units = layers.map(({ attention, feedForward }, i) => ({
    attention: unitOf(`layer ${i} attention`, attention.weights, reader),
    feedForward: unitOf(`layer ${i} feed-forward`, feedForward.weights, reader),
  }));
  const memory = planModelMemory({ blueprint, units, head: head.units, ...options });
  const cache = new WeightCache(runner.engine, memory.decodedBytes, memory.keptBytes);
  const resident = new ResidentWeights(checkpoint.files, memory.residentBytes);
  const biases = new Map<number, Float32Array>();
  const forgetWeights = (): void => {
    cache.clear();
    resident.clear();
  };

  async function embed(tokens: readonly number[]): Promise<Float32Array> {
    const hidden = new Float32Array(tokens.length * width);
    for (const [i, token] of tokens.entries()) {
      if (!Number.isInteger(token) || token < 0 || token >= vocabulary) throw new TokenRangeError(token, vocabulary);
      await reader.fill(hidden.subarray(i * width, (i + 1) * width), embedding.matrix, { first: token, count: 1 });
    }
    return hidden;
  }

  /** Adds the attention's output to `hidden`, in place. */
  async function attend(number: number, hidden: Float32Array, parts: readonly PlacedPart[]): Promise<void> {
    const { attention } = layers[number] as DecoderLayer;
    await cache.with((units[number] as LayerUnits).attention, async (weights) => {
      for (const { sequence, chunks } of parts) {
        for (const { position, tokens, row, mask } of chunks(attention.heads)) {
          const own = hidden.subarray(row * width, (row + tokens) * width);
          const angles = rotation(attention.rotary, position, tokens);
          const { query, key, value } = await attention.project(runner, weights, own, angles);
          const kept = sequence.append(number, key, value);
          own.set(await attention.attend(runner, weights, own, query, kept, mask(kept.room)));
        }
      }
    });
  }

  async function feedForward(
    number: number,
    hidden: Float32Array,
    observe: ExpertsObserver | undefined,
  ): Promise<Float32Array> {
    const layer = (layers[number] as DecoderLayer).feedForward;
    const unit = (units[number] as LayerUnits).feedForward;
    if (layer.kind === 'dense') {
      const sizes = { tokens: hidden.length / width, width, rows: layer.weights.gate.shape[0] as number, epsilon };
      const run = (tensors: Tensors) => runner.run(dense, sizes, { ...tensors, hidden }, ['hidden']);
      return (await cache.with(unit, run)).hidden;
    }
    if (layer.bias && !biases.has(number)) {
      const bias = new Float32Array(layer.experts.count);
      await reader.fill(bias, layer.bias.matrix);
      biases.set(number, bias);
    }
    return runExperts(layer, hidden, {
      runner,
      cache,
      epsilon,
      unit,
      bias: biases.get(number),
      onExpert: () => {
        if (signal?.aborted) throw new InterruptedError();
      },
      observe,
    });
  }

  async function runLayer(
    number: number,
    hidden: Float32Array,
    parts: readonly PlacedPart[],
    observe?: ExpertsObserver,
  ): Promise<Float32Array> {
    await setImmediate(); // engine runs block the thread, so signals are handled here
    if (signal?.aborted) throw new InterruptedError();
    await attend(number, hidden, parts);
    return feedForward(number, hidden, observe);
  }

  return {
    layers: layers.length,
    width,
    vocabulary,
    context: configReader(checkpoint).number('max_position_embeddings', Number.MAX_SAFE_INTEGER),
    memory,
    expertsOf(number) {
      const layer = (layers[number] as DecoderLayer).feedForward;
      return layer.kind === 'dense' ? undefined : { count: layer.experts.count, perToken: layer.rule.expertsPerToken };
    },
    newSequence: () => new KeyValueCache(layers.map(({ attention }) => attention.cached)),
    async *forward(parts) {
      let hidden = await embed(parts.flatMap((part) => part.tokens));
      const placed = placeParts(parts);
      for (let number = 0; number < layers.length; number++) {
        hidden = await runLayer(number, hidden, placed);
        yield hidden;
      }
      return hidden;
    },
    embed,
    runLayer: (number, hidden, parts, observe) => runLayer(number, hidden, placeParts(parts), observe),
    forgetWeights,
    logits: (hidden) => head.logits(hidden),
    usage: () => ({ bytesRead: reader.bytesRead, ...cache.counts }),
    async close() {
      forgetWeights();
      await checkpoint.files.close();
    },
  };
}

interface LayerUnits {
  readonly attention: Unit;
  readonly feedForward: Unit;
}

function unitOf(key: string, weights: Readonly<Record<string, Weight>>, reader: WeightReader): Unit {
  const named = Object.entries(weights);
  return {
    key,
    shapes: shapesOf(weights),
    kind: 'always',
    async fill(buffers) {
      for (const [name, { matrix }] of named) await reader.fill(buffers[name] as Float32Array, matrix);
    },
  };
}

/** Finds how the model is computed from its `model_type`. Throws `UnsupportedModelError`. */
export function architectureOf(checkpoint: Checkpoint): Architecture {
  const modelType = modelTypeOf(checkpoint.config);
  const architecture = ARCHITECTURES.find(({ modelTypes }) => modelTypes.includes(modelType));
  if (architecture) return architecture;
  throw new UnsupportedModelError(configReader(checkpoint).file, `its model_type is "${modelType}"`);
}

function drawBlueprint(
  checkpoint: Checkpoint,
  { expertsPerToken }: ModelOptions,
  tools: Parameters<typeof findExperts>[2],
): Blueprint {
  const config = configReader(checkpoint);
  const architecture = architectureOf(checkpoint);
  const activation = config.text('hidden_act', 'silu');
  if (activation !== 'silu') throw new UnsupportedModelError(config.file, `its activation is "${activation}"`);
  const experts = findExperts(checkpoint, config.number('hidden_size'), tools);
  return architecture.draw({
    config,
    weight: (name, shape) => findWeight(checkpoint, name, shape),
    experts(prefix): LayerExperts {
      const found = experts.get(prefix);
      if (!found) throw new MissingExpertError(`${prefix}experts.0.gate_proj.weight`, checkpoint.folder);
      if (expertsPerToken !== undefined && expertsPerToken > found.count)
        throw new OptionError('--experts-per-token', `a layer has ${found.count} experts`);
      return found;
    },
    expertsPerToken,
  });
}
