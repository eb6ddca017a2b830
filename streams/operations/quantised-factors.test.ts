/** Factors in quantised dtypes: what compress writes, and everything that reads it. */
import { cpSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { differingFiles } from '../../fixtures/compare-weights.js';
import { generateFamily, TINY } from '../../fixtures/generate-family.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import type { StoredTensor } from '../../fixtures/quantised-storage.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { writeTensors } from '../../fixtures/write-tensors.js';
import { QUANTISED_NAMES, type QuantisedName } from '../../src/checkpoint/factor-dtype.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { findNativeGroups } from '../../src/conversion/native-groups.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import { work } from '../compute/worker.js';
import type { RunResult } from '../run-options.js';
import { checkWeights } from './check-weights.js';
import { compress } from './compress.js';
import { evaluate } from './evaluate.js';
import { expand } from './expand.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { inspect } from './inspect.js';
import { plan } from './plan.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const OUTPUT = { shardSize: 20_000, threads: 1 };
const QUICK: CompressOptions = { bases: 3, steps: 4, ...OUTPUT };
const configOf = (folder: string) => JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8'));
const LAYER = 'model.layers.1.mlp.';
/** Sizes that fill neither the last word nor the last scale group of a row. */
const SIZES = { ...TINY, layers: 2, rows: 20, cols: 72 };
/** The same factors as floats. */
let floats: RunResult;

beforeAll(async () => {
  await generateFamily(at('model'), 'qwen3_moe', { sizes: SIZES });
  floats = await compress(at('model'), at('floats'), QUICK);
});

const tensorOf = (folder: string, name: string) => {
  const { dtype, shape } = readFolder(at(folder)).get(LAYER + name) ?? {};
  return [dtype, shape];
};

describe('each dtype:', () => {
  const data: Record<QuantisedName, [string, string, number]> = {
    int8: ['I8', '', 20],
    fp8: ['F8_E4M3', '', 20],
    int6: ['I32', '_packed', 4],
    int5: ['I32', '_packed', 4],
    int4: ['I32', '_packed', 3],
  };
  const bases = { int8: 'int8', fp8: 'int8', int6: 'int6', int5: 'int6', int4: 'int5' } as const;
  /** The errors are those of four steps, to which these codes add so much. */
  const added = { int8: 0.004, fp8: 0.05, int6: 0.03, int5: 0.07, int4: 0.2 };

  test.each(QUANTISED_NAMES)('%s is written, read, verified and expanded', async (dtype) => {
    await compress(at('model'), at(dtype), { ...QUICK, dtype });
    const [name, suffix, width] = data[dtype];
    expect(tensorOf(dtype, `experts.7.up_proj.weight${suffix}`)).toEqual([name, [20, width]]);
    expect(tensorOf(dtype, 'experts.7.up_proj.weight_scale')).toEqual(['BF16', [20, 1]]);
    expect(tensorOf(dtype, 'B_up_scale')).toEqual(['BF16', [3, 20, 2]]);
    expect(tensorOf(dtype, 'W_up')).toEqual(['BF16', [8, 3]]);
    expect(configOf(dtype)).toMatchObject({ mobe: { format_version: 2, factors: [{ rank: 20 }] } });
    expect(configOf(dtype).mobe.factors[0]).toMatchObject({ dtype, bases_dtype: bases[dtype], scale_group: 64 });
    expect(configOf(dtype)).not.toHaveProperty('num_B');
    const { problems, groups } = await verify(at('model'), at(dtype), { threads: 1 });
    expect(problems).toEqual([]);
    for (const [i, { relativeError }] of groups.entries()) {
      const exact = (floats.groups[i] as { relativeError?: number }).relativeError as number;
      expect(relativeError).toBeLessThan(exact + added[dtype]);
      expect(relativeError).toBeGreaterThan(exact - 0.01);
    }
    await expand(at(dtype), at(`${dtype}-expanded`), OUTPUT);
    const result = await verify(at('model'), at(`${dtype}-expanded`), { threads: 1 });
    expect(result.problems).toEqual([]);
    for (const [i, { relativeError }] of result.groups.entries())
      expect(relativeError).toBeCloseTo(groups[i]?.relativeError as number, 3);
  });
});

test('factor files give the checkpoint that compress writes, and the weights that expand does', async () => {
  const dtypes: CompressOptions = { dtype: 'int5', basesDtype: 'fp8', scaleGroup: 128, groups: 2, bases: 4 };
  const options = { ...QUICK, ...dtypes };
  await compress(at('model'), at('mixed'), { ...options, projections: ['gate_proj', 'down_proj'] });
  await fitFactors(at('model'), at('mixed-factors'), { ...options, projections: ['gate_proj', 'down_proj'] });
  await exportFactors(at('model'), at('mixed-factors'), at('mixed-export'), OUTPUT);
  expect(differingFiles(at('mixed-export'), at('mixed'))).toEqual([]);
  await exportFactors(at('model'), at('mixed-factors'), at('mixed-hf'), { ...OUTPUT, format: 'hf' });
  await expand(at('mixed'), at('mixed-expanded'), OUTPUT);
  expect(differingFiles(at('mixed-expanded'), at('mixed-hf'))).toEqual([]);
  expect(tensorOf('mixed', 'B_down_1')).toEqual(['F8_E4M3', [2, 20, 72]]);
  expect(tensorOf('mixed', 'B_down_1_scale')).toEqual(['BF16', [2, 20, 1]]);
  expect(configOf('mixed').mobe.factors[0]).toMatchObject({ dtype: 'int5', bases_dtype: 'fp8', scale_group: 128 });
  for (const folder of ['mixed', 'mixed-hf'])
    expect((await verify(at('model'), at(folder), { threads: 1 })).problems).toEqual([]);
});

test('A alone, or the bases alone, may be quantised', async () => {
  await compress(at('model'), at('own'), { ...QUICK, dtype: 'int4', basesDtype: 'bfloat16' });
  expect(tensorOf('own', 'B_up')).toEqual(['BF16', [3, 20, 72]]);
  expect(configOf('own').mobe.factors[0]).toMatchObject({ dtype: 'int4', bases_dtype: 'bfloat16' });
  await compress(at('model'), at('shared'), { ...QUICK, basesDtype: 'int6' });
  expect(tensorOf('shared', 'experts.0.up_proj.weight')).toEqual(['BF16', [20, 20]]);
  expect(tensorOf('shared', 'B_up_packed')).toEqual(['I32', [3, 20, 14]]);
  for (const folder of ['own', 'shared'])
    expect((await verify(at('model'), at(folder), { threads: 1 })).problems).toEqual([]);
});

test('a run that was interrupted, and one on a worker, write the same bytes', async () => {
  const options: CompressOptions = { ...QUICK, dtype: 'int5' };
  await compress(at('model'), at('whole'), options);
  const controller = new AbortController();
  const onProgress = ({ kind }: { kind: string }) => void (kind === 'group' && controller.abort());
  const running = compress(at('model'), at('resumed'), options, { onProgress, signal: controller.signal });
  await expect(running).rejects.toMatchObject({ kept: at('resumed') });
  const other = compress(at('model'), at('resumed'), { ...options, basesDtype: 'int5' });
  await expect(other).rejects.toThrow(errors.UnfinishedRunError);
  await expect(other).rejects.toThrow('basesDtype "int6", now "int5"');
  let fitted = 0;
  await compress(at('model'), at('resumed'), options, {
    onProgress: ({ kind }) => void (kind === 'group' && fitted++),
  });
  expect(fitted).toBeLessThan(4);
  expect(differingFiles(at('resumed'), at('whole'))).toEqual([]);
  const worker = await work({ threads: 1, maxMemory: 600e6 }, { host: '127.0.0.1', port: 0 });
  try {
    await compress(at('model'), at('remote'), options, { workers: [worker.url] });
  } finally {
    await worker.close();
  }
  expect(differingFiles(at('remote'), at('whole'))).toEqual([]);
});

test('mobe plan counts the bytes that are written, and inspect the weights that they hold', async () => {
  const options: CompressOptions = { ...QUICK, dtype: 'int5' };
  const floats = await plan(at('model'), QUICK);
  const planned = await plan(at('model'), options);
  await compress(at('model'), at('planned'), options);
  const written = [...readFolder(at('planned')).values()];
  expect(planned.bytesAfter).toBe(written.reduce((sum, { bytes }) => sum + bytes.byteLength, 0));
  expect(planned.bytesAfter).toBeLessThan(floats.bytesAfter);
  expect(planned.parametersAfter).toBe(floats.parametersAfter);
  const { native, total, quantised, obstacle } = await inspect(at('planned'));
  expect({ native, obstacle, parameters: total.parameters }).toEqual({
    native: true,
    obstacle: undefined,
    parameters: planned.parametersAfter,
  });
  expect(quantised).toEqual({ 'INT5 in groups of 64': 32, 'INT6 in groups of 64': 4 });
  const { weights, bad } = await checkWeights(at('planned'));
  expect({ weights, bad }).toEqual({ weights: planned.parametersAfter, bad: [] });
});

test('a model with quantised factors runs as its expanded weights do', async () => {
  await compress(TINY_MODEL, at('run'), { bases: 8, steps: 2, threads: 1, dtype: 'int5' });
  await expand(at('run'), at('run-expanded'), { threads: 1 });
  const text = at('text.txt');
  writeFileSync(text, 'The quick brown fox jumps over the lazy dog. '.repeat(12));
  const options = { threads: 1, window: 64 };
  const { models } = await evaluate([at('run'), at('run-expanded')], text, options);
  const [factors, weights] = models.map(({ perplexity }) => perplexity) as [number, number];
  expect(Math.abs(factors / weights - 1)).toBeLessThan(0.01); // expanded weights are rounded once more
});

describe('a damaged checkpoint is refused:', () => {
  const NAME = `${LAYER}experts.3.gate_proj.weight`;
  beforeAll(() => compress(at('model'), at('sound'), { ...QUICK, shardSize: 1e9, dtype: 'int5', basesDtype: 'int8' }));

  async function damaged(change: (tensors: Map<string, StoredTensor>, config: { mobe: never }) => void) {
    const tensors = new Map<string, StoredTensor>(readFolder(at('sound')));
    const config = configOf('sound');
    change(tensors, config);
    await writeTensors(at('damaged'), [...tensors.values()], config);
    const checkpoint = await openCheckpoint(at('damaged'));
    return () => findNativeGroups(checkpoint);
  }
  const reshaped = (it: StoredTensor | undefined, shape: number[], dtype = it?.dtype ?? ''): StoredTensor => {
    const own = it as StoredTensor;
    const size = { I8: 1, BF16: 2, I32: 4, F32: 4, F8_E4M3: 1 }[dtype] ?? 0;
    return { ...own, dtype, shape, bytes: new Uint8Array(shape.reduce((a, b) => a * b, size)) };
  };

  test('its scales are missing', async () => {
    const open = await damaged((tensors) => tensors.delete(`${NAME}_scale`));
    expect(open).toThrow(errors.MissingScaleError);
    expect(open).toThrow(`"${NAME}_packed"`);
    expect(open).toThrow(`"${NAME}_scale" is in no shard`);
  });
  test("the bases' scales are missing", async () => {
    const open = await damaged((tensors) => tensors.delete(`${LAYER}B_gate_scale`));
    expect(open).toThrow(errors.MissingScaleError);
    expect(open).toThrow(`"${LAYER}B_gate_scale"`);
  });
  test('its codes are missing', async () => {
    const open = await damaged((tensors) => tensors.delete(`${NAME}_packed`));
    expect(open).toThrow(errors.MissingExpertError);
    expect(open).toThrow(`"${NAME}_packed"`);
  });
  test('its scales have another shape', async () => {
    const open = await damaged((tensors) =>
      tensors.set(`${NAME}_scale`, reshaped(tensors.get(`${NAME}_scale`), [20, 2])),
    );
    expect(open).toThrow(errors.UnequalExpertError);
    expect(open).toThrow(`"${NAME}_scale" in ${at('damaged', 'model.safetensors')} has shape [20,2], expected [20,1]`);
  });
  test('its codes have another shape', async () => {
    const open = await damaged((tensors) =>
      tensors.set(`${NAME}_packed`, reshaped(tensors.get(`${NAME}_packed`), [20, 3])),
    );
    expect(open).toThrow(errors.UnequalExpertError);
    expect(open).toThrow('has shape [20,3], expected [20,4]');
  });
  test('its codes have another dtype', async () => {
    const name = `${LAYER}B_gate`;
    const open = await damaged((tensors) => tensors.set(name, reshaped(tensors.get(name), [3, 20, 72], 'F8_E4M3')));
    expect(open).toThrow(errors.NativeConfigError);
    expect(open).toThrow(
      `asks for I8 in mobe.factors, and tensor "${name}" in ${at('damaged', 'model.safetensors')} is F8_E4M3`,
    );
  });
  test('its scales have another dtype', async () => {
    const open = await damaged((tensors) =>
      tensors.set(`${NAME}_scale`, reshaped(tensors.get(`${NAME}_scale`), [20, 1], 'F32')),
    );
    expect(open).toThrow(errors.NativeConfigError);
    expect(open).toThrow(/asks for BF16 in mobe\.factors, .* is F32\./);
  });
  test.each<[string, Record<string, unknown>, string]>([
    [
      'a dtype that does not exist',
      { dtype: 'int3' },
      'names the dtype "int3" as "dtype" in mobe.factors; known are int8, ',
    ],
    ['bases of such a dtype', { bases_dtype: 7 }, 'names the dtype 7 as "bases_dtype"'],
    ['no scale group', { scale_group: 0 }, 'has "scale_group": 0 in mobe.factors'],
    ['another rank', { rank: 19 }, 'says "rank": 19 for '],
    ['another number of bases', { bases: 4 }, 'says "bases": 4 for '],
    [
      'no dtype',
      { dtype: undefined },
      'has no dtype for up_proj of layer 1 in mobe.factors, and "model.layers.1.mlp.B_up"',
    ],
  ])('its config says %s', async (_, entry, message) => {
    const open = await damaged((_tensors, config) =>
      Object.assign((config.mobe as { factors: object[] }).factors[0] as object, entry),
    );
    expect(open).toThrow(errors.NativeConfigError);
    expect(open).toThrow(message);
    expect(open).toThrow(at('damaged', 'config.json'));
  });
  test('a factor file whose codes are of another dtype', async () => {
    await fitFactors(at('model'), at('files'), { ...QUICK, dtype: 'int8', layers: [0] });
    mkdirSync(at('files-damaged'));
    cpSync(at('files'), at('files-damaged'), { recursive: true });
    const path = at('files-damaged', 'layer-000.up_proj.safetensors');
    writeFileSync(path, readFileSync(path, 'latin1').replace('"dtype":"I8"', '"dtype":"U8"'), 'latin1');
    const run = exportFactors(at('model'), at('files-damaged'), at('never'), OUTPUT);
    await expect(run).rejects.toThrow(errors.FactorMismatchError);
    await expect(run).rejects.toThrow(`${path}: "A" is U8, and its metadata asks for I8`);
  });
});

describe('options that do not go together are refused:', () => {
  test.each<[string, CompressOptions, string]>([
    ['rebuilt weights', { format: 'hf', dtype: 'int8' }, '--dtype: int8 is for factors, and --format hf'],
    ['rebuilt weights of coded bases', { format: 'hf', basesDtype: 'fp8' }, '--bases-dtype: fp8 is for factors'],
    ['two float dtypes', { dtype: 'float32', basesDtype: 'bfloat16' }, '--bases-dtype: factors of float dtypes'],
    ['scales of floats', { scaleGroup: 128 }, '--scale-group: only quantised factors have scales'],
    [
      'a method without bases',
      { method: 'svd', bases: undefined, steps: undefined, dtype: 'int4' },
      '--dtype: factors of --method svd are floats',
    ],
  ])('%s', async (_, options, message) => {
    const run = compress(at('model'), at('never'), { ...QUICK, ...options });
    await expect(run).rejects.toThrow(errors.OptionError);
    await expect(run).rejects.toThrow(message);
  });
});
