/** Opens a model for a calibration pass and chooses its sequences. */
import { createHash } from 'node:crypto';
import { layerLayout, tokensLayout } from '../../src/calibration/layer-file.js';
import { expertLayers, layerSizes } from '../../src/calibration/pass.js';
import type { PassIdentity, PassSizes } from '../../src/calibration/pass-folder.js';
import type { CalibrationPlan } from '../../src/calibration/pass-plan.js';
import type { RecordFacts } from '../../src/calibration/record.js';
import { type Checkpoint, fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { OptionError, UnsupportedModelError } from '../../src/errors.js';
import { type FileSystem, nodeFileSystem } from '../../src/file-system.js';
import { configReader } from '../../src/inference/config-reader.js';
import { architectureOf, type LanguageModel } from '../../src/inference/language-model.js';
import { type CalibrateSettings, usefulThreads } from '../../src/inference/run-options.js';
import { VERSION } from '../../src/version.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { RunHooks } from '../run-options.js';
import { chooseTokens, readTexts } from './choose-tokens.js';
import { USUAL_WINDOW } from './evaluate.js';
import { openModels } from './run-models.js';
import { type WritingProgress, writeText } from './write-text.js';

/** Tokens of an expert, in units of d, up to which more of them improve fits (docs/calibration.md). */
const TOKENS_OF_WIDTH = 5;

/** A pass that is ready to run: its model, sizes, tokens and plan. */
export interface PreparedPass {
  readonly checkpoint: Checkpoint;
  readonly model: LanguageModel;
  readonly sizes: PassSizes;
  /**
   * The token numbers, (sequences, length).
   * @param workspace folder for tokens that the model writes
   * @param onTokens called with the number of tokens of each sequence that the model has written
   */
  tokens(workspace: string, onTokens?: (progress: WritingProgress) => void): Promise<Int32Array>;
  readonly facts: RecordFacts;
  readonly identity: PassIdentity;
  readonly plan: CalibrationPlan;
  close(): Promise<void>;
}

/** Throws `OptionError` for options and texts that do not fit the model, and as `openModels` does. */
export async function preparePass(
  source: Source,
  settings: CalibrateSettings,
  {
    signal,
    peers,
    fileSystem = nodeFileSystem,
  }: Pick<RunHooks, 'signal' | 'peers'> & { fileSystem?: FileSystem | undefined },
): Promise<PreparedPass> {
  const checkpoint = await openSource(source, { peers });
  architectureOf(checkpoint); // Options and tokenizer would be of no use for a model that cannot be run.
  const context = configReader(checkpoint).number('max_position_embeddings', USUAL_WINDOW);
  if ((settings.sequenceLength ?? 0) > context)
    throw new OptionError('--sequence-length', `the model was made for ${context} tokens`);
  const wantedLength = settings.sequenceLength ?? Math.min(context, USUAL_WINDOW);
  const texts = await readTexts(checkpoint, settings, { signal, fileSystem });
  const use = { checkpoint, keptTokens: 0, batchTokens: Number.MAX_SAFE_INTEGER, sequenceLength: wantedLength };
  const { engine, models, close } = await openModels([use], settings, signal);
  try {
    const [model] = models as [LanguageModel];
    const layers = expertLayers(model);
    if (layers.length === 0)
      throw new UnsupportedModelError(configReader(checkpoint).file, 'the model has no layers of experts');
    const share = Math.min(...layers.map((layer) => shareOfExpert(model, layer)));
    const usual = Math.ceil((TOKENS_OF_WIDTH * model.width) / share);
    const chosen = chooseTokens(texts, { length: wantedLength, usual }, settings);
    const { sequences, length } = chosen;
    const facts: RecordFacts = {
      version: 1,
      sourceFingerprint: await fingerprint(checkpoint),
      ...{ sequences, length, seed: settings.seed },
      texts: texts.map(({ entry }) => entry),
      ...(settings.fromModel && { fromModel: true }),
      layers,
      engine: engineRecord(engine),
    };
    const sizes = { sequences, length, width: model.width };
    const identity = {
      'version of mobe': VERSION,
      model: facts.sourceFingerprint,
      'time of the model': hashOf(JSON.stringify(await modified(checkpoint))),
      'choice of tokens': hashOf(chosen.identity),
      'sequence length': length,
      engine: engine.name,
      device: engine.device,
      threads: usefulThreads(settings.threads, model.width),
    };
    return {
      ...{ checkpoint, model, sizes, facts, identity, close },
      plan: {
        ...planOf(model, sizes, layers, share, chosen.notes),
        memoryBytes: settings.maxMemory - model.memory.spareBytes,
      },
      tokens: async (workspace, onTokens) =>
        chosen.tokens ?? writeText({ checkpoint, sizes, settings, identity, workspace, onTokens, signal, fileSystem }),
    };
  } catch (error) {
    await close();
    throw error;
  }
}

/** The share of all tokens that an expert of a layer gets on average. */
function shareOfExpert(model: LanguageModel, layer: number): number {
  const { perToken, count } = model.expertsOf(layer) as { perToken: number; count: number };
  return perToken / count;
}

function planOf(
  model: LanguageModel,
  sizes: PassSizes,
  layers: readonly number[],
  share: number,
  notes: readonly string[],
): Omit<CalibrationPlan, 'memoryBytes'> {
  const { sequences, length, width } = sizes;
  const tokens = sequences * length;
  const layerBytes = layers.map((layer) => {
    const own = layerSizes(model, layer, sizes);
    return own ? layerLayout(layer, own).bytes : 0;
  });
  const states = Math.min(2, layers.at(-1) as number);
  return {
    ...{ sequences, length, tokens, notes },
    tokensPerExpert: tokens * share,
    tokensOfWidth: (tokens * share) / width,
    layers: layers.length,
    recordBytes: layerBytes.reduce((sum, it) => sum + it, tokensLayout(sequences, length).bytes),
    workBytes: states * 4 * tokens * width,
    batchTokens: Math.min(tokens, model.memory.batchTokens),
  };
}

async function modified({ folder, files, shards }: Checkpoint): Promise<Array<[string, number]>> {
  const own = new Set(shards.map(({ path }) => path.slice(folder.length + 1)));
  try {
    return (await files.list(folder)).filter(({ path }) => own.has(path)).map((it) => [it.path, it.modified]);
  } finally {
    await files.close();
  }
}

const hashOf = (data: string | Int32Array): string =>
  createHash('sha256')
    .update(typeof data === 'string' ? data : new Uint8Array(data.buffer, data.byteOffset, data.byteLength))
    .digest('hex')
    .slice(0, 16);
