import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { FAMILY_NAMES, type FamilyName } from '../../fixtures/families.js';
import { type GeneratedModel, generateCheckpoint } from '../../fixtures/generate.js';
import { generateFamily } from '../../fixtures/generate-family.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import type { TensorSpec } from '../checkpoint/header.js';
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

  test('a layer that it makes dense has experts: they are read, for the tensors say what is there', async () => {
    expect(await layersOf('bailing_moe_v2', { first_k_dense_replace: 2 }, [])).toEqual([1, 2, 3, 4, 5]);
  });

  test('a layer that a list gives no experts has none', async () => {
    expect(await layersOf('qwen3_moe', { num_experts: [2, 2, 0, 2, 2, 2] }, [2])).toEqual([0, 1, 3, 4, 5]);
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
    ['number of dimensions', { shape: [32] }],
  ])('an expert of another %s', async (_, change) => {
    const run = detect({
      alter: (tensors) => tensors.map((tensor) => (tensor.name === odd ? { ...tensor, ...change } : tensor)),
    });
    await expect(run).rejects.toThrow(errors.UnequalExpertError);
    await expect(run).rejects.toThrow(odd);
  });
});

describe('sizes come from the tensors:', () => {
  // Models with pruned or latent experts have such configs, and their loaders take the sizes from the tensors.
  test.each([
    ['num_experts', 13, 'layer 0 has 12 experts'],
    ['moe_intermediate_size', 5, 'layer 0 has 4 rows an expert'],
    ['hidden_size', 16, 'layer 0 has 8 columns an expert'],
  ])('a config that says another %s is told so, and has no native form', async (key, value, says) => {
    const { family, notes, differences } = await detect({ config: { [key]: value } });
    expect(notes).toEqual([`config.json says "${key}": ${value}, ${says}: the tensors count.`]);
    expect(differences).toEqual(notes);
    expect(family.native).toBeUndefined();
  });

  test('an entry that the family does not read is no difference', async () => {
    const config = { model_type: 'gpt_oss', moe_intermediate_size: 7, intermediate_size: 4 };
    const { family, notes } = await detect({ config });
    expect(notes).toEqual([]);
    expect(family.native).toBeDefined();
  });

  const pruned = (counts: readonly number[]) => (tensors: TensorSpec[]) =>
    tensors.filter(({ name }) => {
      const [, layer, expert] = /layers\.(\d+)\.mlp\.experts\.(\d+)\./.exec(name) ?? [];
      return expert === undefined || Number(expert) < (counts[Number(layer)] as number);
    });

  test.each<[string, object, number]>([
    ['a scalar beside a list', { num_experts: 12, num_experts_per_layer: [12, 5] }, 1],
    ['a list', { num_experts: [12, 5] }, 0],
    ['nothing', { num_experts: undefined }, 0],
  ])('layers with different numbers of experts, of which the config says %s', async (_, config, notes) => {
    const model = await detect({ config: { ...config }, alter: pruned([12, 5]) });
    expect(model.layers.map(({ experts }) => experts.gate_proj.length)).toEqual([12, 5]);
    expect(model.notes).toHaveLength(notes);
    expect(model.family.native).toBeUndefined();
    expect(model.family.name).toContain('not all as config.json says');
  });

  test('experts that are narrower than hidden_size, under a model_type that mobe does not know', async () => {
    const narrow = ({ name, shape, ...rest }: TensorSpec): TensorSpec => {
      if (!name.includes('.experts.')) return { name, shape, ...rest };
      const latent = shape.map((size) => (size === 8 ? 6 : size));
      return { ...rest, name, shape: latent, bytes: 2 * 4 * 6 };
    };
    const config = { model_type: 'kimi_k3', moe_latent_size: 6 };
    const { layers } = await detect({ config, alter: (tensors) => tensors.map(narrow) });
    const [{ experts }] = layers as [(typeof layers)[number]];
    expect([experts.gate_proj[0], experts.down_proj[0]].map((it) => [it?.rows, it?.cols])).toEqual([
      [4, 6],
      [6, 4],
    ]);
  });

  test('zero experts that are counted and have no weights', async () => {
    const { layers } = await detect({ config: { model_type: 'longcat_flash', num_experts: 18, zero_expert_num: 6 } });
    expect(layers.map(({ experts }) => experts.gate_proj.length)).toEqual([12, 12]);
  });

  test('the config of the language model counts, wherever it is nested', async () => {
    for (const nest of [
      (it: object) => ({ text_config: it }),
      (it: object) => ({ llm_config: it }),
      (it: object) => ({ language_config: it }),
      (it: object) => ({
        thinker_config: { text_config: it },
        talker_config: { text_config: { num_hidden_layers: 9 } },
      }),
    ]) {
      const { layers } = await detect({
        layers: 3,
        config: { ...nest({ num_hidden_layers: 2 }), model_type: 'multimodal' },
      });
      expect(layers).toHaveLength(2);
    }
  });
});

describe('experts as they are:', () => {
  test('of two matrices, without a gate', async () => {
    const { layers } = await detect({ alter: (tensors) => tensors.filter(({ name }) => !name.includes('gate_proj')) });
    expect(
      layers.map(({ experts }) => [experts.gate_proj, experts.up_proj, experts.down_proj].map((it) => it.length)),
    ).toEqual(layers.map(() => [0, 12, 12]));
  });

  test('a gate that only some layers have is missing in the others', async () => {
    const run = detect({ alter: (tensors) => tensors.filter(({ name }) => !/layers\.1\..*gate_proj/.test(name)) });
    await expect(run).rejects.toThrow(errors.MissingExpertError);
    await expect(run).rejects.toThrow('model.layers.1.mlp.experts.0.gate_proj.weight');
  });

  test("LongCat's zero experts have no down_proj and stay as they are", async () => {
    const withoutDown = (tensors: TensorSpec[]) =>
      tensors.filter(({ name }) => !/experts\.1[01]\.down_proj/.test(name));
    const { layers } = await detect({ config: { zero_expert_num: 2 }, alter: withoutDown });
    expect(layers[0]?.experts.up_proj).toHaveLength(10);
    await expect(detect({ config: { zero_expert_num: 1 }, alter: withoutDown })).rejects.toThrow(
      errors.MissingExpertError,
    );
  });

  test("ERNIE-4.5-VL's experts for pictures come after those for text and stay as they are", async () => {
    const alter = (tensors: TensorSpec[]) =>
      tensors.map((it) => {
        if (!/experts\.1[01]\./.test(it.name)) return it;
        return { ...it, shape: it.shape.map((size) => (size === 4 ? 2 : size)), bytes: it.bytes / 2 };
      });
    const widths = { moe_intermediate_size: [4, 2] };
    const { layers } = await detect({ config: { ...widths, moe_num_experts: [10, 2] }, alter });
    expect(layers[0]?.experts.down_proj).toHaveLength(10);
    expect((await detect({ config: { ...widths, moe_num_experts: 6 } })).layers[0]?.experts.up_proj).toHaveLength(6);
    const run = detect({ config: { ...widths, moe_num_experts: [10, 3] }, alter });
    await expect(run).rejects.toThrow(errors.UnequalExpertError);
  });

  test('of two modules in a layer, the larger one counts, and a note names the other', async () => {
    const { layers, notes } = await detect({
      alter: (tensors) => [
        ...tensors,
        ...tensors
          .filter(({ name }) => /experts\.[01]\./.test(name))
          .map((it) => ({ ...it, name: it.name.replace('mlp.experts', 'mlp.vision_moe.experts') })),
      ],
    });
    expect(layers.map(({ prefix }) => prefix)).toEqual(['model.layers.0.mlp.', 'model.layers.1.mlp.']);
    expect(notes[0]).toContain('Those in model.layers.0.mlp.vision_moe.');
  });
});

describe('experts that cannot be read:', () => {
  const renamed = (to: string) => (tensors: TensorSpec[]) =>
    tensors.map((it) => ({ ...it, name: it.name.replace(/mlp\.experts\.(\d+)\.(\w+)\.weight$/, to) }));

  test('names that look like experts are shown with their shapes', async () => {
    const run = detect({ alter: renamed('moe.expert_list.$1.$2.matrix') });
    await expect(run).rejects.toThrow(errors.UnknownModelError);
    await expect(run).rejects.toThrow('model.layers.0.moe.expert_list.0.gate_proj.matrix (BF16 [4,8])');
  });

  test('a dense model is called one', async () => {
    const run = detect({ alter: (tensors) => tensors.filter(({ name }) => !name.includes('experts')) });
    await expect(run).rejects.toThrow('seems to be a dense model');
  });

  test.each([
    ['of the config', { quant_method: 'x9' }, 'codes', 'x9, as config.json says'],
    [
      'of the config, with its bits',
      { quant_method: 'bitsandbytes', bits: 4 },
      'weight.absmax',
      'bitsandbytes of 4 bits',
    ],
    ['that its tensors have', undefined, 'codes', 'AQLM, by its name'],
  ])('a quantisation is called by the name %s', async (_, entry, suffix, says) => {
    const config = { model_type: 'other', text_config: entry ? { quantization_config: entry } : {} };
    const run = detect({ config, alter: renamed(`moe.expert_list.experts_$1.$2.${suffix}`) });
    await expect(run).rejects.toThrow(errors.UnsupportedQuantisationError);
    await expect(run).rejects.toThrow(says);
    await expect(run).rejects.not.toThrow('ownload');
  });
});
