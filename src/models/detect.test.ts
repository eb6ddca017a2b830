import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type GeneratedModel, generateCheckpoint } from '../../fixtures/generate.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import * as errors from '../errors.js';
import { detectModel } from './detect.js';

const root = temporaryFolder();
let made = 0;
async function detect(model: Partial<GeneratedModel> = {}) {
  const folder = join(root, String(made++));
  await generateCheckpoint(folder, { layers: 2, experts: 12, rows: 4, cols: 8, ...model });
  return detectModel(await openCheckpoint(folder));
}

test('the trained fixture: every layer, experts in numeric order across shards', async () => {
  const { family, layers } = detectModel(await openCheckpoint(TINY_MODEL));
  expect(family.name).toBe('Qwen3-MoE');
  expect(layers.map(({ layer }) => layer)).toEqual([0, 1, 2, 3]);
  expect(layers[1]?.experts.up_proj.map(({ name }) => name.split('.')[5])).toEqual(
    Array.from({ length: 32 }, (_, i) => `${i}`),
  );
});

test('a module past the last layer (multi-token prediction) is no layer', async () => {
  expect((await detect({ layers: 3, config: { num_hidden_layers: 2 } })).layers).toHaveLength(2);
});

test.each([
  ['deepseek_v3', 'DeepSeek-V3', true],
  ['kimi_k2', 'Kimi-K2', true],
  ['bailing_moe_v2', 'Ling', true],
  ['brand_new_moe', 'brand_new_moe (standard expert names)', false],
])('%s', async (modelType, name, native) => {
  const { family } = await detect({ config: { model_type: modelType, num_experts: 12, n_routed_experts: 12 } });
  expect(family.name).toBe(name);
  expect(family.native !== undefined).toBe(native);
});

describe('refused:', () => {
  test('no experts', async () => {
    const run = detect({ alter: (tensors) => tensors.filter(({ name }) => !name.includes('experts')) });
    await expect(run).rejects.toThrow(errors.UnknownModelError);
  });

  test.each([
    'model.layers.1.mlp.experts.3.up_proj.weight',
    'model.layers.0.mlp.experts.11.down_proj.weight',
    'model.layers.0.mlp.experts.0.gate_proj.weight',
  ])('without %s', async (missing) => {
    const run = detect({ alter: (tensors) => tensors.filter(({ name }) => name !== missing) });
    await expect(run).rejects.toThrow(errors.MissingExpertError);
    await expect(run).rejects.toThrow(missing);
  });

  const odd = 'model.layers.1.mlp.experts.3.up_proj.weight';
  test.each([
    ['shape', { shape: [2, 16] }],
    ['dtype', { dtype: 'F16' }],
    ['number of dimensions', { shape: [32] }],
  ])('an expert of another %s', async (_, change) => {
    const run = detect({
      alter: (tensors) => tensors.map((tensor) => (tensor.name === odd ? { ...tensor, ...change } : tensor)),
    });
    await expect(run).rejects.toThrow(errors.UnequalExpertError);
    await expect(run).rejects.toThrow(odd);
  });

  test.each([
    ['num_experts', 13],
    ['moe_intermediate_size', 5],
    ['hidden_size', 16],
  ])('a config that says another %s', async (key, value) => {
    const run = detect({ config: { [key]: value } });
    await expect(run).rejects.toThrow(errors.ConfigMismatchError);
    await expect(run).rejects.toThrow(key);
  });
});
