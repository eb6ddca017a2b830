import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { FAMILY_NAMES, type FamilyName } from '../../fixtures/families.js';
import { type GeneratedModel, generateCheckpoint } from '../../fixtures/generate.js';
import { generateFamily } from '../../fixtures/generate-family.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import * as errors from '../errors.js';
import { detectModel } from './detect.js';

const root = temporaryFolder();
let made = 0;
const SMALL = { layers: 3, experts: 2, rows: 4, cols: 8 };
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

test.each(FAMILY_NAMES)('%s, from its own names and config', async (name) => {
  const folder = join(root, String(made++));
  const { detected, native, moeLayers, sizes } = await generateFamily(folder, name, { sizes: SMALL });
  const { family, layers } = detectModel(await openCheckpoint(folder));
  expect(family.name).toBe(detected);
  expect(family.native !== undefined).toBe(native);
  expect(layers.map(({ layer }) => layer)).toEqual(moeLayers);
  for (const { experts } of layers)
    expect(Object.values(experts).map(({ length }) => length)).toEqual([sizes.experts, sizes.experts, sizes.experts]);
});

describe('which layers have experts is what the config says:', () => {
  const layersOf = async (family: FamilyName, config: object, dense: number[]) => {
    const folder = join(root, String(made++));
    await generateFamily(folder, family, {
      sizes: { ...SMALL, layers: 6 },
      config: { ...config },
      alter: (tensors) => tensors.filter(({ name }) => !dense.some((it) => name.includes(`layers.${it}.mlp.experts`))),
    });
    return detectModel(await openCheckpoint(folder)).layers.map(({ layer }) => layer);
  };
  test.each<[string, FamilyName, object, number[], number[]]>([
    ['every second', 'qwen3_moe', { decoder_sparse_step: 2 }, [0, 2, 4], [1, 3, 5]],
    ['all but those listed as dense', 'qwen2_moe', { mlp_only_layers: [1, 4] }, [1, 4], [0, 2, 3, 5]],
    ['the dense ones first', 'deepseek_v3', { first_k_dense_replace: 3 }, [1, 2], [3, 4, 5]],
    ['every third after the dense ones', 'deepseek_v2', { moe_layer_freq: 3 }, [1, 2, 4, 5], [3]],
    ['none dense first', 'bailing_moe', { first_k_dense_replace: undefined }, [], [0, 1, 2, 3, 4, 5]],
  ])('%s', async (_, family, config, dense, expected) => {
    expect(await layersOf(family, config, dense)).toEqual(expected);
  });

  test('a layer that it gives experts has none: refused', async () => {
    const run = layersOf('glm4_moe', {}, [3]);
    await expect(run).rejects.toThrow(errors.MissingLayerError);
    await expect(run).rejects.toThrow('gives layer 3 routed experts');
  });

  test('a layer that it makes dense has experts: refused', async () => {
    const run = layersOf('bailing_moe_v2', { first_k_dense_replace: 2 }, []);
    await expect(run).rejects.toThrow(errors.MissingLayerError);
    await expect(run).rejects.toThrow('makes layer 1 a dense one');
  });

  test('a family that mobe does not know has those that are there', async () => {
    expect(await layersOf('unknown', {}, [2, 4])).toEqual([1, 3, 5]);
  });
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
