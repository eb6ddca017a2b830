import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import { differingFiles, differingWeights, relativeError, weightOf } from '../../fixtures/compare-weights.js';
import { dequantiseFp8, dequantiseInt4, readFloats } from '../../fixtures/dequantise.js';
import type { FamilyName } from '../../fixtures/families.js';
import { type FamilyOptions, generateFamily, type KnownWeight } from '../../fixtures/generate-family.js';
import { randomLayer } from '../../fixtures/memory-record.js';
import { INT4_GROUP, type Quantisation, type StoredTensor } from '../../fixtures/quantised-storage.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { startService } from '../../fixtures/services.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { writeRecord } from '../../fixtures/write-record.js';
import { fingerprint, openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { isFitted, isKept, isRepaired } from '../../src/conversion/run-report.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import type { Progress } from '../run-options.js';
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

/** Converts some layers with --keep-quantized, by `compress` and by `fit` and `export`, which must agree, and verifies the result. */
async function convert(
  name: string,
  family: FamilyName,
  options: FamilyOptions,
  layers: readonly number[],
  more: CompressOptions = {},
) {
  const at = (...path: string[]) => join(root, name, ...path);
  const source = await generateFamily(at('model'), family, options);
  const quick: CompressOptions = {
    ...{ bases: 3, steps: 3, layers: [...layers], dtype: 'bfloat16' },
    ...{ ...OUTPUT, ...KEEP, ...more },
  };
  const { groups } = await compress(at('model'), at('hf'), { ...quick, format: 'hf' }, LARGER);
  await fitFactors(at('model'), at('factors'), quick);
  await exportFactors(at('model'), at('factors'), at('export'), { ...OUTPUT, ...KEEP, format: 'hf' }, LARGER);
  expect(differingFiles(at('export'), at('hf'))).toEqual([]);
  expect((await verify(at('model'), at('hf'), { threads: 1 })).problems).toEqual([]);
  const written = readFolder(at('hf'));
  const config = (folder: string) => JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8'));
  return { at, source, config, written, groups };
}

/** Expects a tensor of the source, byte for byte. */
function expectSame(written: ReturnType<typeof readFolder>, { name, dtype, shape, bytes }: StoredTensor): void {
  expect(written.get(name), name).toMatchObject({ dtype, shape });
  expect(Buffer.compare(written.get(name)?.bytes ?? Buffer.of(), bytes), name).toBe(0);
}

/** The part of a tensor's name that says which weight it belongs to. */
const weightName = (tensor: string): string => tensor.replace(/\.(?:weight\w*|input_scale)$/, '.weight');

describe("--keep-quantized writes converted experts in the source's own quantisation:", () => {
  /** Decodes a written weight without any code of src/. */
  type Decode = (tensors: ReturnType<typeof readFolder>, weight: KnownWeight) => Float32Array;
  const bytesOf = (tensors: ReturnType<typeof readFolder>, name: string): Uint8Array =>
    (tensors.get(name) as StoredTensor).bytes;
  const fp8 =
    (suffix: string, dtype: string, blockOf: (shape: readonly number[]) => readonly [number, number]): Decode =>
    (tensors, { name, shape }) =>
      dequantiseFp8(
        'F8_E4M3',
        bytesOf(tensors, name),
        readFloats(dtype, bytesOf(tensors, `${name}${suffix}`)),
        shape[1] as number,
        blockOf(shape),
      );
  const int4: Decode = (tensors, { name, shape }) =>
    dequantiseInt4(
      bytesOf(tensors, `${name}_packed`),
      readFloats('BF16', bytesOf(tensors, `${name}_scale`)),
      shape[1] as number,
      INT4_GROUP,
    );

  /** Everything but codes and scales of converted experts is as it was, and these mean weights of the reported error. */
  async function expectLikeSource(
    name: string,
    family: FamilyName,
    options: FamilyOptions,
    layers: readonly number[],
    decode?: Decode,
    more?: CompressOptions,
  ) {
    const converted = await convert(name, family, options, layers, more);
    const { source, written, config, groups } = converted;
    expect([...written.keys()].sort()).toEqual([...source.tensors.keys()].sort());
    expect(config('hf')).toEqual(source.config);
    const isFactorised = ({ name: it, kind }: KnownWeight): boolean =>
      kind === 'expert' && isExpertOf(it, layers) && !it.includes('down');
    let changed = 0;
    for (const tensor of source.tensors.values()) {
      const weight = source.weights.get(weightName(tensor.name));
      if (!weight || !isFactorised(weight) || /(?:_shape|input_scale)$/.test(tensor.name)) {
        expectSame(written, tensor);
        continue;
      }
      const { dtype, shape, bytes } = tensor;
      expect(written.get(tensor.name), tensor.name).toMatchObject({ dtype, shape });
      if (Buffer.compare(bytesOf(written, tensor.name), bytes) !== 0) changed++;
    }
    expect(changed).toBeGreaterThanOrEqual(2 * 8 * layers.length);
    for (const group of decode ? groups.filter(isFitted) : []) {
      const size = 8 / group.groups;
      const isInGroup = (it: string): boolean =>
        Math.floor(Number(/experts\.(\d+)/.exec(it)?.[1]) / size) === group.group;
      const weights = [...source.weights.values()].filter(
        ({ name: it }) => isExpertOf(it, [group.layer]) && it.includes(group.projection) && isInGroup(it),
      );
      let [error, norm] = [0, 0];
      for (const weight of weights) {
        const rebuilt = (decode as Decode)(written, weight);
        weight.values.forEach((value, i) => {
          error += (value - (rebuilt[i] as number)) ** 2;
          norm += value ** 2;
        });
      }
      expect(weights).toHaveLength(size);
      expect(Math.abs(Math.sqrt(error / norm) / group.relativeError - 1)).toBeLessThan(1e-5);
      expect(group.relativeError).toBeLessThan(0.75);
    }
    return converted;
  }

  const blocks = fp8('_scale_inv', 'F32', () => [12, 16]);

  test('FP8 of a DeepSeek-V3, one layer of two', async () => {
    await expectLikeSource('fp8', 'deepseek_v3', { quantised: 'fp8' }, [1], blocks);
  });

  test('FP8 of a DeepSeek-V3.1, whose scales are powers of two', async () => {
    const { written } = await expectLikeSource('ue8m0', 'deepseek_v3', { quantised: 'fp8-ue8m0' }, [1], blocks);
    const scales = [...written.values()].filter(({ name }) => name.endsWith('_proj.weight_scale_inv'));
    expect(scales.length).toBeGreaterThan(2 * 8);
    for (const { name, bytes } of scales)
      expect(
        readFloats('F32', bytes).every((scale) => Number.isInteger(Math.log2(scale))),
        name,
      ).toBe(true);
  });

  test('INT4 of a Kimi-K2, with all that is beside the codes', async () => {
    await expectLikeSource('int4', 'kimi_k2', { quantised: 'int4' }, [1, 2], int4);
  });

  test('FP8 in blocks, every layer, with two groups', THOROUGH, async () => {
    const options = { quantised: 'fp8' } as const;
    await expectLikeSource('fp8-all', 'deepseek_v3', options, [1, 2], blocks, { bases: 4, groups: 2 });
  });

  test('FP8 with a scale a row', THOROUGH, async () => {
    const decode = fp8('_scale', 'BF16', ([, cols = 0]) => [1, cols]);
    await expectLikeSource('channel', 'qwen3_moe', { quantised: 'fp8-channel' }, [0], decode);
  });

  test('FP8 with a scale a matrix, and one for its inputs', THOROUGH, async () => {
    const decode = fp8('_scale', 'F32', ([rows = 0, cols = 0]) => [rows, cols]);
    await expectLikeSource('tensor', 'qwen3_moe', { quantised: 'fp8-tensor' }, [0], decode);
  });

  test('INT4 of a multimodal model, whose entry is nested', THOROUGH, async () => {
    await expectLikeSource('nested', 'multimodal', { quantised: 'int4' }, [1], int4);
  });

  test.each(['mxfp4', 'mxfp8', 'int8'] as const)('%s', THOROUGH, async (quantised) => {
    await expectLikeSource(quantised, 'qwen3_moe', { quantised }, [0, 1]);
  });

  test('experts that are plain in the source stay plain beside quantised ones', async () => {
    const quantisedOnly = /^(?!.*experts\.3\.).*$/;
    const options = { quantised: 'fp8', quantisedOnly } as const;
    const { written } = await expectLikeSource('mixed', 'qwen3_moe', options, [1]);
    expect(written.get('model.layers.1.mlp.experts.3.up_proj.weight')?.dtype).toBe('BF16');
    expect(written.get('model.layers.1.mlp.experts.4.up_proj.weight')?.dtype).toBe('F8_E4M3');
  });

  test('groups above --max-error keep the bytes of the source', async () => {
    const at = (...path: string[]) => join(root, 'max-error', ...path);
    const source = await generateFamily(at('model'), 'kimi_k2', { quantised: 'int4', sizes: { layers: 2 } });
    const options: CompressOptions = { bases: 3, steps: 3, format: 'hf', maxError: 1e-3, ...OUTPUT, ...KEEP };
    const { groups } = await compress(at('model'), at('hf'), options);
    expect(groups.map(isKept)).toEqual([true, true]);
    const { maxError, format, ...fit } = options;
    await fitFactors(at('model'), at('factors'), fit);
    await exportFactors(at('model'), at('factors'), at('export'), { ...OUTPUT, ...KEEP, maxError, format }, LARGER);
    for (const folder of ['hf', 'export']) {
      const written = readFolder(at(folder));
      for (const tensor of source.tensors.values()) expectSame(written, tensor);
      expect((await verify(at('model'), at(folder), { threads: 1 })).problems).toEqual([]);
    }
  });

  test('an interrupted run goes on, and gives the same bytes', async () => {
    const at = (...path: string[]) => join(root, 'fp8', ...path);
    const options: CompressOptions = { bases: 3, steps: 3, layers: [1], format: 'hf', ...OUTPUT, ...KEEP };
    const controller = new AbortController();
    const stopped = compress(at('model'), at('stopped'), options, {
      signal: controller.signal,
      onProgress: ({ kind }) => kind === 'group' && controller.abort(),
    });
    await expect(stopped).rejects.toMatchObject({ name: 'InterruptedError', kept: at('stopped') });
    const fitted: Progress[] = [];
    await compress(at('model'), at('stopped'), options, {
      onProgress: (it) => it.kind === 'group' && fitted.push(it),
    });
    // The second group may have been finished as well before the run could stop.
    expect(fitted.length).toBeLessThanOrEqual(1);
    expect(differingFiles(at('stopped'), at('hf'))).toEqual([]);
  });

  test('a repaired down_proj is quantised again as well', async () => {
    const at = (...path: string[]) => join(root, 'repair', ...path);
    const sizes = { layers: 2, experts: 6, rows: 16, cols: 40 };
    const source = await generateFamily(at('model'), 'qwen3_moe', { quantised: 'int4', sizes });
    const layers = [0, 1].map((layer) =>
      randomLayer(layer, { tokens: 300, width: sizes.cols, experts: sizes.experts, expertsPerToken: 2 }),
    );
    const sourceFingerprint = await fingerprint(await openCheckpoint(at('model')));
    await writeRecord(at('record'), { sequences: 3, length: 100, sourceFingerprint }, layers);
    const options: CompressOptions = {
      bases: 2,
      steps: 4,
      format: 'hf',
      calibration: at('record'),
      ...OUTPUT,
      ...KEEP,
    };
    const { groups } = await compress(at('model'), at('hf'), {
      ...options,
      ...{ projections: ['gate_proj', 'up_proj'], metric: 'none', allocate: 'uniform', repair: 'factors+down' },
    });
    expect(groups.filter(isRepaired)).toHaveLength(2);
    const written = readFolder(at('hf'));
    expect([...written.keys()].sort()).toEqual([...source.tensors.keys()].sort());
    for (const { name, dtype, shape, bytes } of source.tensors.values()) {
      expect(written.get(name), name).toMatchObject({ dtype, shape });
      if (!/experts\..*weight_packed$/.test(name)) continue;
      const unreached = name.includes('experts.5.down_proj'); // no token chooses the last expert
      expect(Buffer.compare(written.get(name)?.bytes ?? Buffer.of(), bytes) === 0, name).toBe(unreached);
    }
    expect((await verify(at('model'), at('hf'), { threads: 1 })).problems).toEqual([]);
  });

  test('workers give the same bytes', async () => {
    const at = (...path: string[]) => join(root, 'fp8', ...path);
    const service = await startService(['worker', '--threads', '1']);
    const options: CompressOptions = { bases: 3, steps: 3, layers: [1], format: 'hf', ...OUTPUT, ...KEEP };
    await compress(at('model'), at('remote'), options, { workers: [service.url] });
    await service.stop();
    expect(differingFiles(at('remote'), at('hf'))).toEqual([]);
  });
});

describe('a quantisation that is not written: converted experts are decoded, and named in the config', () => {
  /** Checks that converted layers are plain, and all others as they were. */
  async function expectDecoded(name: string, quantised: Quantisation, layers: readonly number[]) {
    const converted = await convert(name, 'qwen3_moe', { quantised }, layers);
    const { at, source, written } = converted;
    for (const tensor of source.tensors.values()) if (!isExpertOf(tensor.name, layers)) expectSame(written, tensor);
    const decoded = [...written.values()].filter((it) => isExpertOf(it.name, layers));
    expect(new Set(decoded.map(({ dtype }) => dtype))).toEqual(new Set(['BF16']));
    const down = ({ kind, name: it }: KnownWeight) =>
      kind === 'expert' && it.includes('down') && isExpertOf(it, layers);
    expect([...source.weights.values()].filter(down)).toHaveLength(8 * layers.length);
    expect(differingWeights(written, source, down)).toEqual([]);
    const gates = [...source.weights.values()].filter(({ name: it }) => isExpertOf(it, layers) && it.includes('gate'));
    expect(relativeError(readFolder(at('hf')), gates)).toBeLessThan(0.75);
    return converted;
  }

  test('compressed-tensors with zero points, as it matches names', async () => {
    const { source, config } = await expectDecoded('asymmetric', 'int4-asymmetric', [1]);
    const before = source.config.quantization_config as { ignore: string[] };
    const { ignore, ...rest } = config('hf').quantization_config;
    expect({ ...rest, ignore: before.ignore }).toEqual(before);
    expect(ignore.slice(0, before.ignore.length)).toEqual(before.ignore);
    const ignored = (it: string): boolean =>
      ignore.some((entry: string) => entry.startsWith('re:') && new RegExp(`^(?:${entry.slice(3)})`).test(it));
    for (const [name, expected] of [
      ['model.layers.1.mlp.experts.0.gate_proj', true],
      ['model.layers.1.mlp.experts.7.down_proj', true],
      ['model.layers.2.mlp.experts.0.gate_proj', false],
      ['model.layers.11.mlp.experts.0.gate_proj', false],
    ] as const)
      expect(ignored(name), name).toBe(expected);
  });

  test('AWQ, in a list of its own', THOROUGH, async () => {
    const { source, config } = await expectDecoded('awq', 'awq', [1]);
    const entry = source.config.quantization_config as object;
    const modules_to_not_convert = ['model.layers.1.mlp.experts'];
    expect(config('hf').quantization_config).toEqual({ ...entry, modules_to_not_convert });
  });

  test('every layer: nothing is quantised any more, and the config says nothing of it', THOROUGH, async () => {
    const { source, config } = await expectDecoded('nvfp4', 'nvfp4', [0, 1, 2]);
    const { quantization_config: _, ...plain } = source.config;
    expect(config('hf')).toEqual(plain);
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
    await compress(at('model'), at('native'), quick, LARGER);
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
    await exportFactors(at('model'), at('factors'), at('export'), { ...OUTPUT, ...KEEP }, LARGER);
    expect(differingFiles(at('export'), at('native'))).toEqual([]);
    await expand(at('native'), at('expanded'), OUTPUT);
    expect((await verify(at('model'), at('expanded'), { threads: 1 })).problems).toEqual([]);
    const config = (folder: string) => JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8'));
    // The quantisation is that of the modules that are not factorised, in the words of the source.
    const decoded = quantised === 'fp8' && { dequantize: true };
    expect(config('native').quantization_config).toEqual({ ...config('expanded').quantization_config, ...decoded });
    expect(JSON.stringify(config('expanded').quantization_config).replaceAll('\\', '')).toContain(
      'layers.1.mlp.experts',
    );
    expect(config('native').quantization_config.quant_method).toBe(
      (source.config.quantization_config as { quant_method: string }).quant_method,
    );
  });
});

test('an expanded model of which nothing is quantised any more does not say otherwise', async () => {
  const at = (...path: string[]) => join(root, 'native-int4-all', ...path);
  await generateFamily(at('model'), 'kimi_k2', { quantised: 'int4', sizes: { layers: 2 } });
  await compress(at('model'), at('native'), { bases: 3, steps: 3, dtype: 'int8', ...OUTPUT, ...KEEP }, LARGER);
  await expand(at('native'), at('expanded'), OUTPUT);
  const config = (folder: string) => JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8'));
  expect(config('native')).toHaveProperty('quantization_config');
  expect(new Set([...readFolder(at('expanded')).values()].map(({ dtype }) => dtype))).not.toContain('I32');
  expect(JSON.stringify(config('expanded'))).not.toContain('quant');
  expect((await verify(at('model'), at('expanded'), { threads: 1 })).problems).toEqual([]);
});

test.each(['nvfp4', 'gptq', 'awq'] as const)(
  'native factors beside %s leave what is not factorised bit for bit',
  async (quantised) => {
    const at = (...path: string[]) => join(root, `native-${quantised}`, ...path);
    const source = await generateFamily(at('model'), 'qwen3_moe', { quantised, sizes: { layers: 2 } });
    await compress(at('model'), at('native'), { bases: 3, steps: 3, layers: [1], ...OUTPUT, ...KEEP }, LARGER);
    const written = readFolder(at('native'));
    let kept = 0;
    for (const tensor of source.tensors.values()) {
      if (isExpertOf(tensor.name, [1]) && /gate_proj|up_proj/.test(tensor.name)) continue;
      expectSame(written, tensor);
      if (/experts/.test(tensor.name)) kept++;
    }
    expect(kept).toBeGreaterThan(8);
    expect(written.get('model.layers.1.mlp.experts.0.up_proj.weight_scale')?.dtype).toBe('BF16');
    expect((await verify(at('model'), at('native'), { threads: 1 })).problems).toEqual([]);
  },
);

test('without it, all is decoded even where no layer is converted', async () => {
  const at = (...path: string[]) => join(root, 'none', ...path);
  const source = await generateFamily(at('model'), 'deepseek_v3', { quantised: 'fp8' });
  await compress(at('model'), at('out'), { ...OUTPUT, layers: [], format: 'hf' }, LARGER);
  expect(differingWeights(readFolder(at('out')), source, () => true)).toEqual([]);
  expect(readFolder(at('out')).size).toBe(source.weights.size);
  expect((await verify(at('model'), at('out'))).problems).toEqual([]);
});

test('another dtype is that of all that is decoded, exact in f32', async () => {
  const at = (...path: string[]) => join(root, 'f32', ...path);
  const source = await generateFamily(at('model'), 'deepseek_v3', { quantised: 'fp8', sizes: { layers: 2 } });
  const quick: CompressOptions = { ...OUTPUT, bases: 3, steps: 3, dtype: 'float32' };
  await compress(at('model'), at('native'), quick, LARGER);
  await compress(at('model'), at('hf'), { ...quick, format: 'hf' }, LARGER);
  await fitFactors(at('model'), at('factors'), quick);
  await exportFactors(at('model'), at('factors'), at('export'), OUTPUT, LARGER);
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
  const run = compress(at('model'), at('out'), { ...OUTPUT, bases: 3, steps: 3 }, LARGER);
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
  const run = compress(at('model'), at('out'), { ...OUTPUT, bases: 3, steps: 3, format: 'hf' }, LARGER);
  await expect(run).rejects.toThrow(errors.NonFiniteWeightError);
  await expect(run).rejects.toThrow(odd);
  expect(existsSync(at('out'))).toBe(false);
});
