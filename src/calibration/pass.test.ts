import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { largestDifference, openModel } from '../../fixtures/inference.js';
import { EVALUATION_TEXT, TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { decodeFloats } from '../checkpoint/codec.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { createEngine } from '../engine/create-engine.js';
import { nodeFileSystem } from '../file-system.js';
import { configReader } from '../inference/config-reader.js';
import type { ExpertsObservation } from '../inference/experts-layer.js';
import type { LanguageModel } from '../inference/language-model.js';
import { route } from '../inference/router.js';
import { findWeight, WeightReader } from '../inference/weight.js';
import { LocalFiles } from '../sources/files.js';
import { openLayer } from './layer-file.js';
import { expertLayers, runNextLayer } from './pass.js';
import { PassFolder } from './pass-folder.js';
import type { LayerRecord } from './record.js';

const root = temporaryFolder();
const engine = await createEngine('onnx-cpu', { threads: 1 });
const model = await openModel(TINY_MODEL, engine);
afterAll(() => model.close());

const TOKENS = 96;
const sizes = { sequences: 6, length: 16, width: model.width };
const tokens = Int32Array.from(readFileSync(EVALUATION_TEXT).subarray(0, TOKENS));
const parts = Array.from({ length: sizes.sequences }, (_, i) => ({
  sequence: model.newSequence(),
  tokens: Array.from(tokens.subarray(16 * i, 16 * i + 16)),
}));
const states: Float32Array[] = [];
beforeAll(async () => {
  for await (const hidden of model.forward(parts)) states.push(hidden.slice());
});

/** Runs a whole pass with this many sequences in each call. Returns the bytes of the layers' files. */
async function pass(folder: string, sequences: number): Promise<Buffer[]> {
  mkdirSync(folder);
  const opened = await PassFolder.open(folder, { identity: {}, sizes, shown: folder }, nodeFileSystem);
  const small: LanguageModel = { ...model, memory: { ...model.memory, batchTokens: sequences * sizes.length } };
  while (opened.layer < model.layers) await runNextLayer({ model: small, folder: opened, sizes, tokens });
  return expertLayers(model).map((layer) => readFileSync(join(folder, `layer-00${layer}.safetensors`)));
}

const files = new LocalFiles();
afterAll(() => files.close());
const open = (folder: string, layer: number): Promise<LayerRecord> => openLayer(folder, layer, TOKENS, files);

async function inputsOf(layer: LayerRecord): Promise<Float32Array> {
  const inputs = new Float32Array(layer.tokens * layer.width);
  await layer.readInputs(
    Array.from({ length: layer.tokens }, (_, i) => i),
    inputs,
  );
  return inputs;
}

test('sequences a few at a time give the bytes of all together', async () => {
  const whole = await pass(join(root, 'whole'), 6);
  for (const sequences of [1, 4]) expect(await pass(join(root, `${sequences}`), sequences)).toEqual(whole);
});

test("scale is 1/rms of forward's hidden states", async () => {
  for (const [number, hidden] of states.entries()) {
    const { scale } = await open(join(root, 'whole'), number);
    for (const [t, it] of scale.entries()) {
      const row = hidden.subarray(t * sizes.width, (t + 1) * sizes.width);
      expect(it * Math.sqrt(row.reduce((sum, x) => sum + x * x, 0) / sizes.width)).toBeCloseTo(1, 5);
    }
  }
});

test("a layer alone has forward's states, and its router chooses from the inputs what is recorded", async () => {
  const checkpoint = await openCheckpoint(TINY_MODEL);
  const reader = new WeightReader(checkpoint.files);
  const k = configReader(checkpoint).number('num_experts_per_tok');
  for (const layer of [0, 3]) {
    const fresh = parts.map((it) => ({ ...it, sequence: model.newSequence() }));
    const before = layer === 0 ? await model.embed(Array.from(tokens)) : (states[layer - 1] as Float32Array).slice();
    let seen: ExpertsObservation | undefined;
    const after = await model.runLayer(layer, before, fresh, (it) => {
      seen = it;
    });
    expect(largestDifference(after, states[layer] as Float32Array)).toBe(0);

    const { x, routing } = seen as ExpertsObservation;
    const record = await open(join(root, 'whole'), layer);
    expect(record.experts).toEqual(routing.experts);
    expect(record.weights).toEqual(routing.weights);
    // bf16 has 8 bits of precision.
    const inputs = await inputsOf(record);
    for (const [i, value] of inputs.entries())
      expect(Math.abs(value - (x[i] as number))).toBeLessThanOrEqual(Math.abs(x[i] as number) / 256);

    const weight = findWeight(checkpoint, `model.layers.${layer}.mlp.gate.weight`, [32, sizes.width]);
    const router = new Float32Array(32 * sizes.width);
    await reader.fill(router, weight.matrix);
    const logits = new Float32Array(TOKENS * 32);
    for (let t = 0; t < TOKENS; t++)
      for (let e = 0; e < 32; e++)
        for (let i = 0; i < sizes.width; i++)
          logits[t * 32 + e] =
            (logits[t * 32 + e] as number) +
            (x[t * sizes.width + i] as number) * (router[e * sizes.width + i] as number);
    const rule = { expertsPerToken: k, score: 'softmax', normalised: true, scale: 1 } as const;
    const own = route(rule, logits, 32);
    expect(own.experts).toEqual(routing.experts);
    expect(largestDifference(own.weights, routing.weights)).toBeLessThan(1e-5);
  }
  await checkpoint.files.close();
});

test('any rising tokens can be read, near or far', async () => {
  const layer = await open(join(root, 'whole'), 2);
  const all = await inputsOf(layer);
  const bytes = readFileSync(layer.name);
  const first = new Float32Array(layer.width);
  const start = bytes.length - TOKENS * (2 * layer.width + 4 + 8 * layer.expertsPerToken);
  decodeFloats('BF16', bytes.subarray(start, start + 2 * layer.width), first);
  expect(all.subarray(0, layer.width)).toEqual(first);
  const wanted = [0, 1, 7, 70, 95];
  const rows = new Float32Array(wanted.length * layer.width);
  await layer.readInputs(wanted, rows);
  for (const [i, token] of wanted.entries())
    expect(rows.subarray(i * layer.width, (i + 1) * layer.width)).toEqual(
      all.subarray(token * layer.width, (token + 1) * layer.width),
    );
});
