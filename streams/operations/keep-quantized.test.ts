import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { differingFiles, differingWeights, relativeError, weightOf } from '../../fixtures/compare-weights.js';
import type { FamilyName } from '../../fixtures/families.js';
import { type FamilyOptions, generateFamily, type KnownWeight } from '../../fixtures/generate-family.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import { compress } from './compress.js';
import { expand } from './expand.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const OUTPUT = { shardSize: 20_000, threads: 1 };
const KEEP = { keepQuantized: true } as const;

const isExpertOf = (name: string, layers: readonly number[]): boolean =>
  layers.some((layer) => name.includes(`layers.${layer}.mlp.experts.`));

/** Converts some layers with --keep-quantized, by `compress` and by `fit` and `export`, and checks tensors and verification. */
async function convert(name: string, family: FamilyName, options: FamilyOptions, layers: readonly number[]) {
  const at = (...path: string[]) => join(root, name, ...path);
  const source = await generateFamily(at('model'), family, options);
  const quick: CompressOptions = { bases: 3, steps: 3, layers: [...layers], ...OUTPUT, ...KEEP };
  await compress(at('model'), at('hf'), { ...quick, format: 'hf' });
  await fitFactors(at('model'), at('factors'), quick);
  await exportFactors(at('model'), at('factors'), at('export'), { ...OUTPUT, ...KEEP, format: 'hf' });
  expect(differingFiles(at('export'), at('hf'))).toEqual([]);
  expect((await verify(at('model'), at('hf'), { threads: 1 })).problems).toEqual([]);
  const written = readFolder(at('hf'));
  for (const { name: tensor, dtype, shape, bytes } of source.tensors.values()) {
    if (isExpertOf(tensor, layers)) continue;
    expect(written.get(tensor), tensor).toMatchObject({ dtype, shape });
    expect(Buffer.compare(written.get(tensor)?.bytes ?? Buffer.of(), bytes), tensor).toBe(0);
  }
  const decoded = [...written.values()].filter((it) => isExpertOf(it.name, layers));
  expect(new Set(decoded.map(({ dtype }) => dtype))).toEqual(new Set(['BF16']));
  const down = ({ kind, name: it }: KnownWeight) => kind === 'expert' && it.includes('down') && isExpertOf(it, layers);
  expect([...source.weights.values()].filter(down)).toHaveLength(8 * layers.length);
  expect(differingWeights(written, source, down)).toEqual([]);
  const gates = [...source.weights.values()].filter(({ name: it }) => isExpertOf(it, layers) && it.includes('gate'));
  expect(relativeError(readFolder(at('hf')), gates)).toBeLessThan(0.7);
  const config = (folder: string) => JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8'));
  return { at, source, config, written };
}

describe('--keep-quantized leaves what is not converted as it is, and names the rest in the config:', () => {
  const modules = (...layers: number[]) => layers.map((layer) => `model.layers.${layer}.mlp.experts`);

  test('FP8 of a DeepSeek-V3, one layer of two', async () => {
    const { source, config } = await convert('fp8', 'deepseek_v3', { quantised: 'fp8' }, [1]);
    const entry = { ...(source.config.quantization_config as object), modules_to_not_convert: modules(1) };
    expect(config('hf')).toEqual({ ...source.config, quantization_config: entry });
  });

  test('FP8 of a DeepSeek-V3, every layer: its prediction module stays FP8', THOROUGH, async () => {
    const { config, written } = await convert('fp8-all', 'deepseek_v3', { quantised: 'fp8' }, [1, 2]);
    expect(config('hf').quantization_config.modules_to_not_convert).toEqual(modules(1, 2));
    expect(written.get('model.layers.3.mlp.experts.0.up_proj.weight')?.dtype).toBe('F8_E4M3');
  });

  test('a list that is there already is added to', THOROUGH, async () => {
    const quantization_config = {
      quant_method: 'fp8',
      weight_block_size: [12, 16],
      modules_to_not_convert: ['lm_head'],
    };
    const options: FamilyOptions = { quantised: 'fp8', config: { quantization_config } };
    const { config } = await convert('fp8-listed', 'kimi_k2', options, [2]);
    expect(config('hf').quantization_config.modules_to_not_convert).toEqual(['lm_head', ...modules(2)]);
  });

  const ignored = (list: readonly string[], name: string): boolean =>
    list.some((it) => (it.startsWith('re:') ? new RegExp(`^(?:${it.slice(3)})`).test(name) : it === name));

  test('INT4 of a Kimi-K2, one layer of two, as compressed-tensors matches names', async () => {
    const { source, config } = await convert('int4', 'kimi_k2', { quantised: 'int4' }, [1]);
    const before = source.config.quantization_config as { ignore: string[] };
    const { ignore, ...rest } = config('hf').quantization_config;
    expect({ ...rest, ignore: before.ignore }).toEqual(before);
    expect(ignore.slice(0, before.ignore.length)).toEqual(before.ignore);
    for (const [name, expected] of [
      ['model.layers.1.mlp.experts.0.gate_proj', true],
      ['model.layers.1.mlp.experts.7.down_proj', true],
      ['model.layers.2.mlp.experts.0.gate_proj', false],
      ['model.layers.11.mlp.experts.0.gate_proj', false],
    ] as const)
      expect(ignored(ignore, name), name).toBe(expected);
  });

  test('INT4, every layer: nothing is quantised any more, and the config says nothing of it', THOROUGH, async () => {
    const { source, config } = await convert('int4-all', 'kimi_k2', { quantised: 'int4' }, [1, 2]);
    const { quantization_config: _, ...plain } = source.config;
    expect(config('hf')).toEqual(plain);
  });

  test('FP8 with a scale a row, in the entry of compressed-tensors', THOROUGH, async () => {
    const { config } = await convert('channel', 'qwen3_moe', { quantised: 'fp8-channel' }, [0]);
    expect(ignored(config('hf').quantization_config.ignore, 'model.layers.0.mlp.experts.3.up_proj')).toBe(true);
  });

  test('INT4 of a multimodal model, whose entry is nested', async () => {
    const { config } = await convert('nested', 'multimodal', { quantised: 'int4' }, [1]);
    const { ignore } = config('hf').text_config.quantization_config;
    expect(ignored(ignore, 'language_model.model.layers.1.mlp.experts.3.up_proj')).toBe(true);
    expect(config('hf').quantization_config).toBeUndefined();
  });
});

describe('a native checkpoint keeps all that is not factorised, bit for bit:', () => {
  test.each<[string, FamilyName, 'fp8' | 'int4']>([
    ['FP8 of a DeepSeek-V3', 'deepseek_v3', 'fp8'],
    ['INT4 of a Kimi-K2', 'kimi_k2', 'int4'],
  ])('%s', async (_, family, quantised) => {
    const at = (...path: string[]) => join(root, `native-${quantised}`, ...path);
    const source = await generateFamily(at('model'), family, { quantised });
    const quick: CompressOptions = { bases: 3, steps: 3, layers: [1], dtype: 'int8', ...OUTPUT, ...KEEP };
    await compress(at('model'), at('native'), quick);
    const written = readFolder(at('native'));
    const isFactorised = (name: string): boolean => isExpertOf(name, [1]) && /gate_proj|up_proj/.test(name);
    for (const { name, dtype, shape, bytes } of source.tensors.values()) {
      if (isFactorised(name)) continue;
      expect(written.get(name), name).toMatchObject({ dtype, shape });
      expect(Buffer.compare(written.get(name)?.bytes ?? Buffer.of(), bytes), name).toBe(0);
    }
    expect(written.get('model.layers.1.mlp.experts.0.up_proj.weight')?.dtype).toBe('I8');
    expect((await verify(at('model'), at('native'), { threads: 1 })).problems).toEqual([]);
    await fitFactors(at('model'), at('factors'), quick);
    await exportFactors(at('model'), at('factors'), at('export'), { ...OUTPUT, ...KEEP });
    expect(differingFiles(at('export'), at('native'))).toEqual([]);
    await exportFactors(at('model'), at('factors'), at('hf'), { ...OUTPUT, ...KEEP, format: 'hf' });
    await expand(at('native'), at('expanded'), OUTPUT);
    expect(differingFiles(at('expanded'), at('hf'))).toEqual([]);
    expect((await verify(at('model'), at('expanded'), { threads: 1 })).problems).toEqual([]);
    const config = (folder: string) => JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8'));
    // The quantisation is that of the modules that are not factorised, in the words of the source.
    const decoded = quantised === 'fp8' && { dequantize: true };
    expect(config('native').quantization_config).toEqual({ ...config('hf').quantization_config, ...decoded });
    expect(config('expanded')).toEqual(config('hf'));
    expect(config('native').quantization_config.quant_method).toBe(
      (source.config.quantization_config as { quant_method: string }).quant_method,
    );
  });
});

test('without it, all is decoded even where no layer is converted', async () => {
  const at = (...path: string[]) => join(root, 'none', ...path);
  const source = await generateFamily(at('model'), 'deepseek_v3', { quantised: 'fp8' });
  await compress(at('model'), at('out'), { ...OUTPUT, layers: [], format: 'hf' });
  expect(differingWeights(readFolder(at('out')), source, () => true)).toEqual([]);
  expect(readFolder(at('out')).size).toBe(source.weights.size);
  expect((await verify(at('model'), at('out'))).problems).toEqual([]);
});

test('another dtype is that of all that is decoded, exact in f32', async () => {
  const at = (...path: string[]) => join(root, 'f32', ...path);
  const source = await generateFamily(at('model'), 'deepseek_v3', { quantised: 'fp8', sizes: { layers: 2 } });
  const quick: CompressOptions = { ...OUTPUT, bases: 3, steps: 3, dtype: 'float32' };
  await compress(at('model'), at('native'), quick);
  await compress(at('model'), at('hf'), { ...quick, format: 'hf' });
  await fitFactors(at('model'), at('factors'), quick);
  await exportFactors(at('model'), at('factors'), at('export'), OUTPUT);
  expect(differingFiles(at('export'), at('native'))).toEqual([]);
  await expand(at('native'), at('expanded'), OUTPUT);
  expect(differingFiles(at('expanded'), at('hf'))).toEqual([]);
  for (const folder of ['native', 'hf', 'expanded']) {
    expect((await verify(at('model'), at(folder), { threads: 1 })).problems).toEqual([]);
    const written = readFolder(at(folder));
    for (const weight of source.weights.values()) {
      const { name, quantised, f32 } = weight;
      expect(written.get(name)?.dtype, name).toBe(quantised || f32 ? 'F32' : 'BF16');
      const converted = isExpertOf(name, [1]) && !name.includes('down');
      if (!converted) expect(weightOf(written, weight), name).toEqual(weight.values);
    }
  }
});

test('a stored shape that disagrees with the data stops the run, and leaves nothing', async () => {
  const at = (...path: string[]) => join(root, 'shape', ...path);
  const odd = 'model.layers.1.mlp.experts.3.down_proj.weight';
  await generateFamily(at('model'), 'kimi_k2', {
    quantised: 'int4',
    alter: (tensors) =>
      tensors.map((it) =>
        it.name === `${odd}_shape` ? { ...it, bytes: new Uint8Array(Int32Array.of(40, 15).buffer) } : it,
      ),
  });
  const run = compress(at('model'), at('out'), { ...OUTPUT, bases: 3, steps: 3 });
  await expect(run).rejects.toThrow(errors.QuantisedShapeError);
  await expect(run).rejects.toThrow(odd);
  expect(existsSync(at('out'))).toBe(false);
});

/** A matrix in HQQ's format, which mobe does not decode and copies as it is. */
const packed = {
  name: 'model.layers.0.self_attn.q_proj.W_q',
  dtype: 'U8',
  shape: [4, 4],
  bytes: new Uint8Array(16),
};

test.each([
  ['stays where tensors of an unknown format are there: they pass through', [packed]],
  ['goes where all tensors are plain: a result in bf16 does not say that it is quantised', []],
])('an entry on quantisation of which no tensor is known %s', async (_, extra) => {
  const at = (...path: string[]) => join(root, `foreign-${extra.length}`, ...path);
  const config = {
    quantization_config: { quant_method: 'hqq', bits: 4, modules: ['self_attn'] },
  };
  const alter: FamilyOptions['alter'] = (tensors) => [...tensors, ...extra];
  const source = await generateFamily(at('model'), 'qwen3_moe', { config, sizes: { layers: 1 }, alter });
  await compress(at('model'), at('out'), { ...OUTPUT, bases: 3, steps: 3, format: 'hf' });
  const { quantization_config: _entry, ...plain } = source.config;
  const written = JSON.parse(readFileSync(at('out', 'config.json'), 'utf8'));
  expect(written).toEqual(extra.length ? source.config : plain);
  expect((await verify(at('model'), at('out'))).problems).toEqual([]);
});

test('a code that is not a number is named, also where it is only decoded', async () => {
  const at = (...path: string[]) => join(root, 'nan', ...path);
  const odd = 'model.layers.0.self_attn.o_proj.weight';
  await generateFamily(at('model'), 'deepseek_v3', {
    quantised: 'fp8',
    alter: (tensors) =>
      tensors.map((it) =>
        it.name === odd ? { ...it, bytes: it.bytes.map((code, i) => (i === 5 ? 0x7f : code)) } : it,
      ),
  });
  const run = compress(at('model'), at('out'), { ...OUTPUT, bases: 3, steps: 3, format: 'hf' });
  await expect(run).rejects.toThrow(errors.NonFiniteWeightError);
  await expect(run).rejects.toThrow(odd);
  expect(existsSync(at('out'))).toBe(false);
});
