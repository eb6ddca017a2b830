/** Scores models on a text, and compares them with their source model. */

import type { Checkpoint } from '../../src/checkpoint/open-checkpoint.js';
import { peakRssBytes } from '../../src/conversion/run-report.js';
import type { EngineFacts } from '../../src/engine/engine.js';
import { OptionError, UnlikeModelsError } from '../../src/errors.js';
import { configReader } from '../../src/inference/config-reader.js';
import type { LanguageModel } from '../../src/inference/language-model.js';
import { type EvaluateOptions, type EvaluateSettings, evaluateSettings } from '../../src/inference/run-options.js';
import { divergence, type Prediction, predict, squaredDifference } from '../../src/inference/scores.js';
import { openTokenizer } from '../../src/inference/tokenizer.js';
import { sourceName } from '../../src/sources/open-source.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { RunHooks } from '../run-options.js';
import { openModels } from './run-models.js';

/** The default window in tokens. Models with a shorter context use that. */
export const USUAL_WINDOW = 2048;
/** Tokens that go through a layer together. The layer's weights are read once for all of them. */
const BATCH_TOKENS = 1024;
/** The most bytes of logits that are held at once. */
const LOGITS_BYTES = 16 * 2 ** 20;

/** The difference between a model and the one it is compared with, on the same tokens. */
export interface Comparison {
  readonly with: string;
  /** Mean negative log-likelihood minus the other model's, nats a token. */
  readonly nllDifference: number;
  /** Standard error of `nllDifference`: both models have the same windows, so it is that of the windows' differences. One window has none. */
  readonly standardError?: number;
  /** Mean KL divergence of the model's predictions from the other model's, in nats. */
  readonly divergence: number;
  /** Share of predictions in which both models find the same token most likely. */
  readonly agreement: number;
  /** Relative error of the hidden states after each layer. It includes the errors of all layers before. */
  readonly layerErrors: readonly number[];
}

/** How well a model predicts a text. */
export interface ModelScore {
  readonly model: string;
  readonly expertsPerToken?: number | undefined;
  readonly windows: number;
  readonly predictions: number;
  /** Mean negative log-likelihood, nats a token. */
  readonly nll: number;
  /** Mean negative log-likelihood, nats a byte of the text. */
  readonly nllPerByte: number;
  readonly perplexity: number;
  readonly comparison?: Comparison;
  readonly seconds: number;
  readonly tokensPerSecond: number;
}

/** The scores of a model, and of one that it is compared with. */
export interface Evaluation {
  readonly textBytes: number;
  readonly window: number;
  readonly engine: EngineFacts;
  /** The scores, those of the model of `against` first. */
  readonly models: readonly ModelScore[];
  readonly peakRssBytes: number;
}

/** Callbacks and connections of `evaluate`. */
export interface EvaluateHooks extends Pick<RunHooks, 'signal' | 'peers'> {
  /** Called when `done` of `windows` windows are scored. Two models that are compared are scored together. */
  readonly onWindow?: (model: string, done: number, windows: number) => void;
}

/**
 * Scores models on a text. The text is cut into consecutive windows that do not overlap. Each window starts at position 0, and
 * all its tokens except the first are predicted. A last window that is not full is left out, unless it is the only one. No
 * token is put before the text. Throws `OptionError` for options and texts that do not fit the model, and `UnlikeModelsError`
 * if two models cannot be compared.
 */
export async function evaluate(
  sources: readonly Source[],
  text: string,
  options: EvaluateOptions = {},
  hooks: EvaluateHooks = {},
): Promise<Evaluation> {
  const settings = evaluateSettings(options);
  const { against } = settings;
  const textBytes = Buffer.byteLength(text);
  const scores: ModelScore[] = [];
  let engine: EngineFacts | undefined;
  let window = 0;
  const others = against === undefined ? sources : sources.filter((it) => it !== against);
  for (const other of against !== undefined && others.length === 0 ? [undefined] : others) {
    const pair = [...(against === undefined ? [] : [against]), ...(other === undefined ? [] : [other])];
    const result = await scoreTogether(pair, against !== undefined, text, settings, hooks);
    engine = result.engine;
    window = result.window;
    scores.push(...result.scores.slice(against !== undefined && scores.length ? 1 : 0));
  }
  if (!engine) throw new OptionError('<model>', 'give at least one model');
  return { textBytes, window, engine, models: scores, peakRssBytes: peakRssBytes() };
}

/** Scores one model, or two that are compared. The two run together, layer by layer. */
async function scoreTogether(
  sources: readonly Source[],
  compared: boolean,
  text: string,
  settings: EvaluateSettings,
  { signal, peers, onWindow }: EvaluateHooks,
): Promise<{ engine: EngineFacts; window: number; scores: ModelScore[] }> {
  const started = performance.now();
  const checkpoints: Checkpoint[] = [];
  for (const source of sources) checkpoints.push(await openSource(source, { peers }));
  const names = sources.map(sourceName);
  const tokens = (await openTokenizer(checkpoints[0] as Checkpoint)).encode(text, false);
  const { window, windows } = cutWindows(tokens, settings.window, checkpoints[0] as Checkpoint);
  const batch = Math.max(1, Math.floor(BATCH_TOKENS / window));
  const batchTokens = Math.min(batch, windows.length) * window;
  const { engine, models, close } = await openModels(
    checkpoints.map((checkpoint, i) => ({
      checkpoint,
      keptTokens: batchTokens,
      batchTokens,
      expertsPerToken: compared && i === 0 ? undefined : settings.expertsPerToken,
    })),
    settings,
    signal,
  );
  try {
    checkAlike(names, models);
    const tallies = models.map((model) => new Tally(model.layers));
    for (let first = 0; first < windows.length; first += batch) {
      await scoreWindows(windows.slice(first, first + batch), models, tallies);
      onWindow?.(names.at(-1) as string, Math.min(first + batch, windows.length), windows.length);
    }
    const seconds = (performance.now() - started) / 1000;
    const bytesPerToken = Buffer.byteLength(text) / tokens.length;
    const scores = tallies.map((tally, i): ModelScore => {
      const own = compared && i === 0 ? undefined : settings.expertsPerToken;
      return {
        model: names[i] as string,
        ...(own !== undefined && { expertsPerToken: own }),
        windows: windows.length,
        ...tally.score(bytesPerToken),
        ...(i > 0 && { comparison: { with: names[0] as string, ...tally.comparison(tallies[0] as Tally) } }),
        seconds,
        tokensPerSecond: (windows.length * window) / seconds,
      };
    });
    return { engine: { name: engine.name, device: engine.device, kind: engine.kind }, window, scores };
  } finally {
    await close();
  }
}

function cutWindows(
  tokens: readonly number[],
  wanted: number | undefined,
  checkpoint: Checkpoint,
): { window: number; windows: number[][] } {
  const context = configReader(checkpoint).number('max_position_embeddings', USUAL_WINDOW);
  if (wanted !== undefined && wanted > context)
    throw new OptionError('--window', `the model was made for ${context} tokens`);
  const window = Math.min(wanted ?? Math.min(context, USUAL_WINDOW), tokens.length);
  if (window < 2) throw new OptionError('--text', `it has ${tokens.length} token(s); at least two are needed`);
  const count = Math.floor(tokens.length / window);
  return { window, windows: Array.from({ length: count }, (_, i) => tokens.slice(i * window, (i + 1) * window)) };
}

function checkAlike(names: readonly string[], models: readonly LanguageModel[]): void {
  const [first, second] = models as [LanguageModel, LanguageModel | undefined];
  for (const key of second ? (['layers', 'width', 'vocabulary'] as const) : [])
    if (first[key] !== second?.[key])
      throw new UnlikeModelsError(
        names[1] as string,
        names[0] as string,
        `they differ in ${key}, ${second?.[key]} and ${first[key]}`,
      );
}

/** Runs the windows through all models, one layer at a time, and adds to their tallies. */
async function scoreWindows(
  windows: ReadonlyArray<readonly number[]>,
  models: readonly LanguageModel[],
  tallies: readonly Tally[],
): Promise<void> {
  const runs = models.map((model) =>
    model.forward(windows.map((tokens) => ({ sequence: model.newSequence(), tokens }))),
  );
  let states: Float32Array[] = [];
  for (let layer = 0; ; layer++) {
    const steps = [];
    for (const run of runs) steps.push(await run.next());
    states = steps.map(({ value }) => value);
    if (steps.every(({ done }) => done)) break;
    for (const [i, own] of states.entries()) if (i > 0) tallies[i]?.addStates(layer, own, states[0] as Float32Array);
  }
  const { vocabulary, width } = models[0] as LanguageModel;
  const most = Math.max(1, Math.floor(LOGITS_BYTES / (4 * vocabulary)));
  for (const [w, tokens] of windows.entries()) {
    for (let first = 0; first < tokens.length - 1; first += most) {
      const count = Math.min(most, tokens.length - 1 - first);
      const row = w * tokens.length + first;
      const logits: Float32Array[] = [];
      for (const [i, model] of models.entries())
        logits.push(await model.logits((states[i] as Float32Array).slice(row * width, (row + count) * width)));
      for (let t = 0; t < count; t++) {
        const predictions = logits.map((it) => predict(it.subarray(t * vocabulary, (t + 1) * vocabulary)));
        for (const [i, own] of predictions.entries())
          tallies[i]?.addPrediction(own, tokens[first + t + 1] as number, i > 0 ? predictions[0] : undefined);
      }
    }
    for (const tally of tallies) tally.endWindow();
  }
}

/** The sums from which a score is computed. */
class Tally {
  private nll = 0;
  private predictions = 0;
  private divergence = 0;
  private agreements = 0;
  /** The mean negative log-likelihood of each window, and the sum before the next one. */
  private readonly windows: number[] = [];
  private before = { nll: 0, predictions: 0 };
  private readonly errors: Float64Array;
  private readonly norms: Float64Array;

  constructor(layers: number) {
    this.errors = new Float64Array(layers);
    this.norms = new Float64Array(layers);
  }

  addStates(layer: number, own: Float32Array, other: Float32Array): void {
    const { error, norm } = squaredDifference(own, other);
    this.errors[layer] = (this.errors[layer] as number) + error;
    this.norms[layer] = (this.norms[layer] as number) + norm;
  }

  addPrediction(own: Prediction, target: number, other: Prediction | undefined): void {
    this.predictions++;
    this.nll -= own.logProbabilities[target] as number;
    if (!other) return;
    this.divergence += divergence(other, own);
    this.agreements += Number(own.mostLikely === other.mostLikely);
  }

  endWindow(): void {
    const { nll, predictions, before } = this;
    this.windows.push((nll - before.nll) / (predictions - before.predictions));
    this.before = { nll, predictions };
  }

  score(bytesPerToken: number): Pick<ModelScore, 'predictions' | 'nll' | 'nllPerByte' | 'perplexity'> {
    const nll = this.nll / this.predictions;
    return { predictions: this.predictions, nll, nllPerByte: nll / bytesPerToken, perplexity: Math.exp(nll) };
  }

  comparison(other: Tally): Omit<Comparison, 'with'> {
    // All windows have the same number of predictions.
    const differences = this.windows.map((nll, i) => nll - (other.windows[i] as number));
    const count = differences.length;
    const mean = differences.reduce((sum, it) => sum + it, 0) / count;
    const squares = differences.reduce((sum, it) => sum + (it - mean) ** 2, 0);
    return {
      nllDifference: mean,
      ...(count > 1 && { standardError: Math.sqrt(squares / (count - 1) / count) }),
      divergence: this.divergence / this.predictions,
      agreement: this.agreements / this.predictions,
      layerErrors: Array.from(this.errors, (error, layer) => Math.sqrt(error / (this.norms[layer] as number))),
    };
  }
}
