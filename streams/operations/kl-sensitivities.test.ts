import { cpSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { readFloats } from '../../fixtures/dequantise.js';
import type { FamilyName } from '../../fixtures/families.js';
import { generateFamily, TINY } from '../../fixtures/generate-family.js';
import { lastStates, openModel } from '../../fixtures/inference.js';
import { type HeldLayer, memoryRecord } from '../../fixtures/memory-record.js';
import type { StoredTensor } from '../../fixtures/quantised-storage.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { thoroughBut } from '../../fixtures/thorough.js';
import { watchedRecord } from '../../fixtures/watched-record.js';
import type { CalibrationRecord } from '../../src/calibration/record.js';
import { encodeFloats } from '../../src/checkpoint/codec.js';
import { type Checkpoint, fingerprint, openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { type FactorFile, factorFileName, openFactorFolder } from '../../src/conversion/factor-files.js';
import { createEngine } from '../../src/engine/create-engine.js';
import { InterruptedError, UnsupportedModelError } from '../../src/errors.js';
import type { LanguageModel } from '../../src/inference/language-model.js';
import { divergence, predict } from '../../src/inference/scores.js';
import { createRandom } from '../../src/linalg/random.js';
import { PROJECTIONS, type Projection } from '../../src/models/family.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { measureSensitivities, type SensitivityRequest } from './sensitivities.js';

const root = temporaryFolder();
const at = (name: string) => join(root, name);
const SIZES = { ...TINY, layers: 3 };
const [SEQUENCES, LENGTH] = [4, 12];
const SETTINGS = { engine: 'onnx-cpu', threads: 1, maxMemory: 2 ** 30, seed: 0 } as const;
const CONFIG = { max_position_embeddings: 64, rms_norm_eps: 1e-6 };
/** DeepSeek has a dense layer first, and shared experts. */
const FAMILIES: Array<[FamilyName, Readonly<Record<string, unknown>>]> = [
  ['qwen3_moe', CONFIG],
  ['deepseek_v3', { ...CONFIG, n_group: 4, topk_group: 2, routed_scaling_factor: 2.5 }],
];

/** Larger weights, so that predictions are far from uniform and an error in an expert shows. */
const enlarge = (tensors: StoredTensor[]): StoredTensor[] =>
  tensors.map((it) =>
    it.shape.length < 2
      ? it
      : {
          ...it,
          bytes: encodeFloats(
            'F32',
            readFloats('F32', it.bytes).map((value) => 8 * value),
          ),
        },
  );

/** The record of some sequences, in f32. */
async function recordOf(model: LanguageModel, sourceFingerprint: string): Promise<CalibrationRecord> {
  const random = createRandom(5);
  const tokens = Int32Array.from({ length: SEQUENCES * LENGTH }, () => random.below(model.vocabulary));
  const { width } = model;
  const layers: HeldLayer[] = [];
  let hidden = await model.embed([...tokens]);
  for (let layer = 0; layer < model.layers; layer++) {
    let held: Omit<HeldLayer, 'scale'> | undefined;
    const expertsPerToken = model.expertsOf(layer)?.perToken ?? 0;
    hidden = await model.runLayer(layer, hidden, sequencesOf(model, tokens), ({ x, routing }) => {
      held = { layer, width, expertsPerToken, input: x, ...routing };
    });
    const scale = Float32Array.from({ length: tokens.length }, (_, t) => {
      const row = hidden.subarray(t * width, (t + 1) * width);
      return 1 / Math.sqrt(row.reduce((sum, it) => sum + it * it, 0) / width);
    });
    if (held) layers.push({ ...held, scale });
  }
  return memoryRecord({ sourceFingerprint, sequences: SEQUENCES, length: LENGTH }, layers, tokens);
}

const sequencesOf = (model: LanguageModel, tokens: Int32Array) =>
  Array.from({ length: SEQUENCES }, (_, i) => ({
    sequence: model.newSequence(),
    tokens: [...tokens.subarray(i * LENGTH, (i + 1) * LENGTH)],
  }));

/** The predictions of all tokens but the last of each sequence. */
async function predictions(model: LanguageModel, tokens: Int32Array) {
  const logits = await model.logits(await lastStates(model, sequencesOf(model, tokens)));
  const all = Array.from({ length: tokens.length }, (_, t) =>
    predict(logits.subarray(t * model.vocabulary, (t + 1) * model.vocabulary)),
  );
  return all.filter((_, t) => (t + 1) % LENGTH !== 0);
}

describe.each(FAMILIES)('%s', (family, config) => {
  const options = thoroughBut('qwen3_moe')(family);
  let source: Checkpoint;
  let record: CalibrationRecord;
  let probes: FactorFile[];
  let layers: readonly number[];
  const place = (name: string) => at(`${family}-${name}`);
  const measure = (changes: Partial<SensitivityRequest> = {}) =>
    measureSensitivities({ source, record, probes, kind: 'kl', settings: SETTINGS, ...changes });

  beforeAll(async () => {
    const { moeLayers } = await generateFamily(place('model'), family, {
      sizes: SIZES,
      dtype: 'F32',
      alter: enlarge,
      config,
    });
    layers = moeLayers;
    source = await openCheckpoint(place('model'));
    const model = await openModel(place('model'), await createEngine('onnx-cpu', { threads: 1 }));
    record = await recordOf(model, await fingerprint(source));
    await model.close();
    await fitFactors(place('model'), place('probes'), {
      bases: 4,
      steps: 3,
      projections: [...PROJECTIONS],
      threads: 1,
    });
    probes = await openFactorFolder(place('probes'));
  });

  test('the KL of each variant is that of a model in which the projection is replaced', options, async () => {
    const engine = await createEngine('onnx-cpu', { threads: 1 });
    const original = await openModel(place('model'), engine);
    const truth = await predictions(original, await record.tokens());
    await original.close();
    const found = await measure();
    expect(found.size).toBe(3 * layers.length);
    for (const [layer, projection] of [
      [layers[0], 'down_proj'],
      [layers.at(-1), 'gate_proj'],
      [layers[1], 'up_proj'],
    ] as Array<[number, Projection]>) {
      const own = place(`${layer}-${projection}`);
      const file = factorFileName({ layer, projection, group: 0, groups: 1 });
      cpSync(join(place('probes'), file), join(`${own}-probe`, file));
      await exportFactors(place('model'), `${own}-probe`, own, { format: 'hf' });
      const replaced = await openModel(own, engine);
      const others = await predictions(replaced, await record.tokens());
      await replaced.close();
      const kl = truth.reduce((sum, it, i) => sum + divergence(it, others[i] as typeof it), 0) / truth.length;
      expect(kl).toBeGreaterThan(1e-4);
      expect(Math.abs((found.get(`${layer} ${projection}`) as number) / kl - 1)).toBeLessThan(2e-3);
    }
  });

  test('variants in batches give the same, and an interrupted measurement goes on after a batch', options, async () => {
    const all = await measure();
    const workspace = place('workspace');
    const settings = { ...SETTINGS, mostVariants: 2 };
    const abort = new AbortController();
    const interrupted = measure({
      settings,
      workspace,
      signal: abort.signal,
      onProgress: (done) => done >= 2 && abort.abort(),
    });
    await expect(interrupted).rejects.toThrow(InterruptedError);
    const opened: number[] = [];
    const resumed = await measure({ settings, workspace, record: watchedRecord(record, opened) });
    expect(resumed).toEqual(await measure({ settings }));
    expect(Math.min(...opened)).toBe(layers[1]); // the first four of three projections a layer are done
    for (const [key, value] of all) expect(Math.abs((resumed.get(key) as number) / value - 1)).toBeLessThan(1e-3);
  });
});

test('a model that cannot be run is refused', async () => {
  await generateFamily(at('mixtral'), 'mixtral', { sizes: SIZES });
  await fitFactors(at('mixtral'), at('mixtral-probes'), { bases: 2, steps: 1, layers: [0], threads: 1 });
  const source = await openCheckpoint(at('mixtral'));
  const record = memoryRecord({ sourceFingerprint: await fingerprint(source), sequences: 1, length: 4 }, []);
  const probes = await openFactorFolder(at('mixtral-probes'));
  await expect(measureSensitivities({ source, record, probes, kind: 'kl', settings: SETTINGS })).rejects.toThrow(
    UnsupportedModelError,
  );
});
