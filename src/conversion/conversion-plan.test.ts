import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import * as errors from '../errors.js';
import { factorParameters, type Problem } from '../methods/mobe/problem.js';
import { groupParameters } from '../methods/parameters.js';
import { planCompression } from './compression-plan.js';
import { estimateSeconds } from './estimate.js';
import { formatRanges, type GroupPlan } from './group-plan.js';
import { inspectCheckpoint } from './inspection.js';
import { planMemory } from './memory-plan.js';
import { type CompressOptions, resolveSettings } from './settings.js';

const plan = async (options: CompressOptions = {}) => planCompression(await openCheckpoint(TINY_MODEL), options);

describe('native output of the fixture with 8 bases', () => {
  test('has the names and shapes the reference reads, and the parameters they add up to', async () => {
    const { layout, parametersBefore, parametersAfter, bytesAfter } = await plan({ bases: 8 });
    const tensors = new Map(layout.shards.flatMap((shard) => shard.tensors).map((tensor) => [tensor.name, tensor]));
    expect(tensors.get('model.layers.2.mlp.B_gate')).toMatchObject({ shape: [8, 64, 192], dtype: 'BF16' });
    expect(tensors.get('model.layers.2.mlp.W_up')).toMatchObject({ shape: [32, 8] });
    expect(tensors.get('model.layers.2.mlp.experts.31.gate_proj.weight')).toMatchObject({ shape: [64, 64] });
    expect(tensors.get('model.layers.2.mlp.experts.31.down_proj.weight')).toMatchObject({ shape: [192, 64] });
    expect(parametersBefore).toBe(5_239_744);
    const dense = 8 * 32 * 64 * 192;
    const factors = 8 * factorParameters({ experts: 32, rows: 64, cols: 192, bases: 8, rank: 64 });
    expect(parametersAfter).toBe(parametersBefore - dense + factors);
    expect(bytesAfter).toBe(2 * parametersAfter);
  });

  test('unconverted layers and projections stay as they are', async () => {
    const { layout, groups } = await plan({ bases: 8, layers: [1, 3], projections: ['up_proj'] });
    expect(groups.map(({ layer, projection }) => `${layer} ${projection}`)).toEqual(['1 up_proj', '3 up_proj']);
    const tensors = new Map(
      layout.shards.flatMap((shard) => shard.tensors).map((tensor) => [tensor.name, tensor.shape]),
    );
    expect(tensors.get('model.layers.1.mlp.experts.0.gate_proj.weight')).toEqual([64, 192]);
    expect(tensors.get('model.layers.1.mlp.experts.0.up_proj.weight')).toEqual([64, 64]);
    expect(tensors.get('model.layers.2.mlp.experts.0.up_proj.weight')).toEqual([64, 192]);
    expect(tensors.has('model.layers.1.mlp.B_gate')).toBe(false);
  });

  test('every tensor is written exactly once', async () => {
    const { layout } = await plan({ bases: 8, shardSize: 1e6 });
    const names = layout.shards.flatMap(({ tensors }) => tensors.map(({ name }) => name));
    expect(new Set(names).size).toBe(names.length);
    expect(names).toHaveLength(423 + 16);
  });
});

test('hf output has the very names, shapes and bytes of the source', async () => {
  const { layout, source, bytesAfter, bytesBefore } = await plan({ format: 'hf' });
  const shapes = (tensors: Iterable<{ name: string; shape: readonly number[]; dtype: string }>) =>
    [...tensors].map(({ name, shape, dtype }) => `${name} ${shape} ${dtype}`).sort();
  expect(shapes(layout.shards.flatMap(({ tensors }) => tensors))).toEqual(shapes(source.tensors.values()));
  expect(bytesAfter).toBe(bytesBefore);
});

describe('--keep', () => {
  const share = async (keep: number) => {
    const { groups } = await plan({ keep });
    const factors = groups.reduce((sum, group) => sum + groupParameters(group), 0);
    const down = 4 * 32 * 64 * 192;
    const { bases } = (groups as [GroupPlan])[0].problem as Problem;
    return { share: (factors + down) / (3 * down), bases };
  };
  test.each([0.6, 0.7, 0.76, 0.9])(
    '%f keeps at most that share of the experts, and one more basis would exceed it',
    async (keep) => {
      const { share: kept, bases } = await share(keep);
      expect(kept).toBeLessThanOrEqual(keep);
      const [larger] = (await plan({ bases: bases + 1 })).groups as [GroupPlan];
      const down = 32 * 64 * 192;
      expect((2 * groupParameters(larger) + down) / (3 * down)).toBeGreaterThan(keep);
    },
  );
  test('a share that cannot be reached is refused with the least that can', async () => {
    await expect(plan({ keep: 0.4 })).rejects.toThrow(errors.OptionError);
    await expect(plan({ keep: 0.4 })).rejects.toThrow('0.577');
    expect((await plan({ keep: 0.577 })).groups[0]?.problem).toMatchObject({ bases: 1 });
  });
});

describe('refused before any work:', () => {
  test.each<[string, CompressOptions, new (...args: never[]) => Error, string]>([
    ['more bases than make anything smaller', { bases: 22 }, errors.NotSmallerError, '--bases 21'],
    ['a rank above the rows', { rank: 65 }, errors.OptionError, 'at most 64'],
    ['a layer without experts', { layers: [4] }, errors.OptionError, '0-3'],
    ['a memory budget too small', { maxMemory: 1e6 }, errors.BudgetTooSmallError, 'smallest that works'],
    ['bases and keep together', { bases: 3, keep: 0.5 }, errors.OptionError, '--bases'],
    ['no projection', { projections: [] }, errors.OptionError, '--projections'],
    ['a negative rate', { learningRate: -1 }, errors.OptionError, '--learning-rate'],
    ['an option nobody knows', { stepz: 3 } as CompressOptions, errors.OptionError, 'stepz'],
  ])('%s', async (_, options, error, names) => {
    await expect(plan(options)).rejects.toThrow(error);
    await expect(plan(options)).rejects.toThrow(names);
  });

  test('21 bases are just small enough', async () => expect((await plan({ bases: 21 })).groups).toHaveLength(8));

  test('native format for a family without one', async () => {
    const folder = join(temporaryFolder(), 'model');
    await generateCheckpoint(folder, { layers: 1, experts: 8, rows: 4, cols: 16, config: { model_type: 'brand_new' } });
    await expect(planCompression(await openCheckpoint(folder), { bases: 1 })).rejects.toThrow('--format hf');
    expect((await planCompression(await openCheckpoint(folder), { bases: 1, format: 'hf' })).groups).toHaveLength(2);
  });

  test.each([
    ['I8', errors.MissingScaleError],
    ['F8_E4M3', errors.MissingScaleError],
  ])('experts in %s alone', async (dtype, error) => {
    const folder = join(temporaryFolder(), 'model');
    const alter: Parameters<typeof generateCheckpoint>[1]['alter'] = (tensors) =>
      tensors.map((tensor) =>
        tensor.name.includes('3.up_proj') ? { ...tensor, dtype, bytes: tensor.bytes / 2 } : tensor,
      );
    await generateCheckpoint(folder, { layers: 1, experts: 8, rows: 4, cols: 16, alter });
    await expect(planCompression(await openCheckpoint(folder), { bases: 1 })).rejects.toThrow(error);
    await expect(planCompression(await openCheckpoint(folder), { bases: 1 })).rejects.toThrow(
      'experts.3.up_proj.weight',
    );
  });
});

describe('memory', () => {
  test('is the sum of its terms, each for what it holds', async () => {
    const { memory } = await plan({ threads: 1 });
    const { terms, expectedBytes, groupBytes } = memory;
    expect(Object.values(terms).reduce((a, b) => a + b, 0)).toBeCloseTo(expectedBytes, -1);
    expect(terms).toMatchObject({
      headers: 423 * 4000,
      groups: groupBytes,
      targets: 4 * 32 * 64 * 192,
      connections: 0,
    });
    expect((await plan({ threads: 2 })).memory.terms.threads).toBe(2 * terms.threads);
  });

  test('holds no targets for a method that does not read them, and no fit where others fit', async () => {
    expect((await plan({ method: 'svd', format: 'hf', rank: 8 })).memory.terms).toMatchObject({ targets: 0, state: 0 });
    const { groups, settings, source, engine } = await plan();
    const fitters = { engine, threads: [1, 1] };
    const { terms, groupBytes } = planMemory(groups, settings, source.tensors.size, engine, fitters);
    expect(terms).toMatchObject({ threads: 0, targets: 0, state: 0, batch: 0, groups: groupBytes });
    expect(terms.connections).toBe((2 * 2 * groupBytes) / 3);
  });

  test("counts an engine's library", async () => {
    const { groups, settings, source, engine, memory } = await plan({ threads: 1 });
    const { expectedBytes } = planMemory(groups, settings, source.tensors.size, { ...engine, name: 'tensorflow' });
    expect(expectedBytes - memory.expectedBytes).toBe(350 * 2 ** 20);
  });
  test('the named smallest budget works, a byte less does not', async () => {
    const message = await plan({ maxMemory: 1 }).catch((error: Error) => error.message);
    const smallest = Number(/(\d+)MiB/.exec(String(message))?.[1]) * 2 ** 20;
    expect((await plan({ maxMemory: smallest })).memory.expectedBytes).toBeLessThanOrEqual(smallest);
    await expect(plan({ maxMemory: smallest - 2 ** 20 })).rejects.toThrow(errors.BudgetTooSmallError);
  });

  test('a tighter budget gives up speed step by step, never the promise', async () => {
    let least = Number.POSITIVE_INFINITY;
    for (const maxMemory of [8e9, 500e6, 420e6, 350e6]) {
      const { memory } = await plan({ maxMemory, threads: 2 });
      expect(memory.expectedBytes).toBeLessThanOrEqual(maxMemory);
      expect(memory.expectedBytes).toBeLessThanOrEqual(least);
      least = memory.expectedBytes;
    }
  });

  test('grows with the number of layers by their headers only', async () => {
    const folder = temporaryFolder();
    const expected = [];
    for (const layers of [2, 20]) {
      await generateCheckpoint(join(folder, `${layers}`), { layers, experts: 8, rows: 4, cols: 16 });
      const source = await openCheckpoint(join(folder, `${layers}`));
      expected.push((await planCompression(source, { bases: 1, threads: 1 })).memory.expectedBytes);
    }
    const [small, large] = expected as [number, number];
    expect(large - small).toBe(18 * (3 * 8 + 9) * 4000);
  });
});

test('the estimate grows with the steps', async () => {
  const seconds = async (steps: number) => estimateSeconds(await plan({ steps }), { step: 1e11, rest: 1e11 });
  expect(await seconds(2000)).toBeGreaterThan(3 * (await seconds(400)));
});

test('settings default as documented', () => {
  expect(resolveSettings()).toMatchObject({
    format: 'mobe',
    keep: 0.76,
    activation: 'silu',
    solver: 'varpro',
    steps: 600,
    seed: 0,
  });
  expect(resolveSettings({ solver: 'adam', bases: 4 })).toMatchObject({ steps: 10_000, bases: 4, keep: undefined });
});

test.each([
  [[0, 1, 2, 5], '0-2, 5'],
  [[3], '3'],
  [[], ''],
])('formatRanges(%j)', (numbers, expected) => expect(formatRanges(numbers)).toBe(expected));

describe('inspect', () => {
  let inspection: Awaited<ReturnType<typeof inspectCheckpoint>>;
  beforeAll(async () => {
    inspection = inspectCheckpoint(await openCheckpoint(TINY_MODEL));
  });
  test('counts by kind and dtype add up to the whole', () => {
    for (const tallies of [inspection.kinds, inspection.dtypes]) {
      expect(Object.values(tallies).reduce((sum, { parameters }) => sum + parameters, 0)).toBe(5_239_744);
    }
  });
  test('knows the experts', () => {
    expect(inspection).toMatchObject({
      family: 'Qwen3-MoE',
      expertsPerLayer: 32,
      expertShape: [64, 192],
      expertLayers: [0, 1, 2, 3],
    });
    expect(inspection.kinds).toMatchObject({
      norms: { tensors: 17 },
      attention: { tensors: 16 },
      router: { tensors: 4 },
    });
    expect(inspection.kinds['routed experts: up_proj']).toMatchObject({ tensors: 128, parameters: 4 * 32 * 64 * 192 });
  });
  test('a sound folder without experts is described, with the obstacle', async () => {
    const folder = join(temporaryFolder(), 'dense');
    const alter = (tensors: Parameters<NonNullable<Parameters<typeof generateCheckpoint>[1]['alter']>>[0]) =>
      tensors.filter(({ name }) => !name.includes('experts'));
    await generateCheckpoint(folder, { layers: 1, experts: 1, rows: 4, cols: 8, alter });
    expect(inspectCheckpoint(await openCheckpoint(folder))).toMatchObject({
      family: undefined,
      expertsPerLayer: 0,
      obstacle: expect.stringContaining('no experts'),
    });
  });
});

describe('the device of an engine', () => {
  const device = { name: 'onnx-webgpu', device: 'a small device', kind: 'gpu' } as const;
  const planned = async (maxTensorBytes: number | undefined, options: CompressOptions = {}) => {
    const { groups, settings, source } = await plan({ bases: 8, ...options });
    return planMemory(groups, settings, source.tensors.size, { ...device, maxTensorBytes });
  };
  const basesBytes = 4 * 8 * 64 * 192;
  const expertBytes = 4 * 64 * 192;

  test('limits the experts of a batch', async () => {
    expect((await planned(undefined)).batchExperts).toBe(32);
    expect((await planned(20 * expertBytes)).batchExperts).toBe(20);
    expect((await planned(basesBytes)).batchExperts).toBe(8);
    expect((await planned(20 * expertBytes, { batchExperts: 5 })).batchExperts).toBe(5);
  });

  test('must hold the bases', async () => {
    await expect(planned(basesBytes - 1)).rejects.toThrow(errors.TensorTooLargeError);
    await expect(planned(basesBytes - 1)).rejects.toThrow('Use fewer --bases');
  });

  test('is there once, so groups are fitted one at a time', async () => {
    expect((await planned(undefined, { threads: 4 })).workers).toBe(1);
    expect((await plan({ bases: 8, threads: 4 })).memory.workers).toBe(4);
  });
});
