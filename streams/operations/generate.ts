/** Continues a prompt, token by token. */
import { peakRssBytes } from '../../src/conversion/run-report.js';
import { OptionError } from '../../src/errors.js';
import { configReader } from '../../src/inference/config-reader.js';
import type { LanguageModel } from '../../src/inference/language-model.js';
import { type GenerateOptions, generateSettings } from '../../src/inference/run-options.js';
import { sample } from '../../src/inference/sample.js';
import type { SequencePart } from '../../src/inference/sequence-parts.js';
import { endTokens, openTokenizer, textStream } from '../../src/inference/tokenizer.js';
import { createRandom } from '../../src/linalg/random.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { RunHooks } from '../run-options.js';
import { openModels } from './run-models.js';

/** Prompt tokens that go through the model together. Each layer's weights are read once for all of them. */
const PROMPT_BATCH = 1024;

/** Figures of a generated text. */
export interface Generation {
  readonly promptTokens: number;
  readonly newTokens: number;
  /** Time until the first new token was chosen. */
  readonly promptSeconds: number;
  /** Time from the first new token to the last. */
  readonly seconds: number;
  /** Rate of the new tokens after the first; undefined if there is only one. */
  readonly tokensPerSecond: number | undefined;
  /** `end`: the model ended the text. `length`: the requested length was reached. `context`: the model's context is full. */
  readonly stopped: 'end' | 'length' | 'context';
  /** Bytes of weights read from the checkpoint. */
  readonly bytesRead: number;
  /** The least memory budget with which no weight is read twice. */
  readonly readOnceBytes: number;
  readonly peakRssBytes: number;
}

/**
 * Yields the text in pieces and returns its figures. The same options on the same machine give the same text. Throws
 * `OptionError` if the prompt is empty or longer than the model's context.
 */
export async function* generate(
  source: Source,
  prompt: string,
  options: GenerateOptions = {},
  { signal, peers }: RunHooks = {},
): AsyncGenerator<string, Generation> {
  const { maxNewTokens, temperature, topP, seed, expertsPerToken, ...settings } = generateSettings(options);
  const checkpoint = await openSource(source, { peers });
  const tokenizer = await openTokenizer(checkpoint);
  const ends = await endTokens(checkpoint);
  const tokens = tokenizer.encode(prompt, true);
  const context = configReader(checkpoint).number('max_position_embeddings', Number.MAX_SAFE_INTEGER);
  if (tokens.length === 0) throw new OptionError('--prompt', 'it is empty; give at least one character');
  if (tokens.length >= context)
    throw new OptionError('--prompt', `it has ${tokens.length} tokens, and the model was made for ${context}`);
  const keptTokens = Math.min(context, tokens.length + maxNewTokens);
  const batchTokens = Math.min(tokens.length, PROMPT_BATCH);
  const use = { checkpoint, keptTokens, batchTokens, expertsPerToken };
  const { models, processBytes, close } = await openModels([use], settings, signal);
  try {
    const [model] = models as [LanguageModel];
    const sequence = model.newSequence();
    const random = createRandom(seed);
    const text = textStream(tokenizer);
    const started = performance.now();
    let first = started;
    let newTokens = 0;
    let stopped: Generation['stopped'] = 'length';
    let logits: Float32Array = new Float32Array(0);
    for (let done = 0; done < tokens.length; done += batchTokens)
      logits = await nextLogits(model, { sequence, tokens: tokens.slice(done, done + batchTokens) });
    for (;;) {
      const token = sample(logits, { temperature, topP }, random);
      if (newTokens === 0) first = performance.now();
      newTokens++;
      if (ends.has(token)) {
        stopped = 'end';
        break;
      }
      const piece = text.push(token);
      if (piece) yield piece;
      if (newTokens === maxNewTokens) break;
      if (sequence.length === context) {
        stopped = 'context';
        break;
      }
      logits = await nextLogits(model, { sequence, tokens: [token] });
    }
    const seconds = (performance.now() - first) / 1000;
    const rest = text.end();
    if (rest) yield rest;
    return {
      promptTokens: tokens.length,
      newTokens,
      promptSeconds: (first - started) / 1000,
      seconds,
      tokensPerSecond: newTokens > 1 ? (newTokens - 1) / seconds : undefined,
      stopped,
      bytesRead: model.usage().bytesRead,
      readOnceBytes: processBytes + model.memory.readOnceBytes,
      peakRssBytes: peakRssBytes(),
    };
  } finally {
    await close();
  }
}

/** The logits (vocabulary) after the last token of `part`. */
async function nextLogits(model: LanguageModel, part: SequencePart): Promise<Float32Array> {
  let hidden: Float32Array = new Float32Array(0);
  for await (const states of model.forward([part])) hidden = states;
  return model.logits(hidden.slice(-model.width));
}
