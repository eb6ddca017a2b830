/** Plans and factor files of different methods. */
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { encodeHeader } from '../checkpoint/header.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { FactorMismatchError, NotSmallerError, OptionError } from '../errors.js';
import { groupParameters } from '../methods/parameters.js';
import type { Problem as SvdProblem } from '../methods/svd/problem.js';
import { svd } from '../methods/svd/svd.js';
import { planCompression } from './compression-plan.js';
import { estimateSeconds } from './estimate.js';
import { encodeFactorMetadata, factorFileName, factorTensors, openFactorFile } from './factor-files.js';
import type { GroupPlan } from './group-plan.js';
import { modelCard } from './model-card.js';
import { type CompressOptions, resolveSettings, resultSettings } from './settings.js';

const plan = async (options: CompressOptions = {}) =>
  planCompression(await openCheckpoint(TINY_MODEL), { format: 'hf', ...options });

describe('--method svd', () => {
  const DENSE = 32 * 64 * 192;
  const share = (groups: readonly GroupPlan[]): number =>
    (groups.reduce((sum, group) => sum + groupParameters(group), 0) + 4 * DENSE) / (12 * DENSE);
  const rankOf = ({ groups }: { groups: readonly GroupPlan[] }): number =>
    ((groups[0] as GroupPlan).problem as SvdProblem).rank;

  test.each([0.5, 0.76, 0.9])('--keep %f keeps at most that share, and one more rank would exceed it', async (keep) => {
    const planned = await plan({ method: 'svd', keep });
    expect(share(planned.groups)).toBeLessThanOrEqual(keep);
    const { groups } = await plan({ method: 'svd', rank: rankOf(planned) + 1 });
    expect(share(groups)).toBeGreaterThan(keep);
  });

  test('factorises the transpose of down_proj, like the others', async () => {
    const { groups } = await plan({ method: 'svd', rank: 8, projections: ['down_proj'], layers: [0] });
    expect(groups).toMatchObject([
      { projection: 'down_proj', problem: { experts: 32, rows: 64, cols: 192, rank: 8 }, format: { transposed: true } },
    ]);
  });

  test('plans memory and time', async () => {
    const planned = await plan({ method: 'svd' });
    expect(planned.memory).toMatchObject({ batchExperts: 1 });
    expect(estimateSeconds(planned, { step: Number.POSITIVE_INFINITY, rest: 1e11 })).toBeGreaterThan(0);
  });

  test.each<[string, CompressOptions, new (...args: never[]) => Error, string]>([
    ['a rank that makes nothing smaller', { rank: 48 }, NotSmallerError, 'Use at most --rank 47'],
    ['a share that cannot be reached', { keep: 0.3 }, OptionError, 'the least possible is 0.348'],
    ['a rank and a share', { rank: 3, keep: 0.5 }, OptionError, '--rank: give either'],
    ['bases', { bases: 3 }, OptionError, '--bases: --method svd has no use for it; what it takes is --keep, --rank'],
    ['groups', { groups: 2 }, OptionError, '--groups: --method svd'],
    ['an activation', { activation: 'silu' }, OptionError, '--activation: --method svd'],
    ['a quality', { quality: 'best' }, OptionError, '--quality: --method svd'],
    ['steps', { steps: 5 }, OptionError, '--steps: --method svd'],
    ['a learning rate', { learningRate: 0.1 }, OptionError, '--learning-rate: --method svd'],
    ['a batch size', { batchExperts: 4 }, OptionError, '--batch-experts: --method svd'],
    ["another method's solver", { solver: 'adam' }, OptionError, '--solver: --method svd is not solved by adam'],
  ])('refuses %s', async (_, options, error, message) => {
    const run = plan({ method: 'svd', ...options });
    await expect(run).rejects.toThrow(error);
    await expect(run).rejects.toThrow(message);
  });

  test('no rank is named if none makes anything smaller', () => {
    const shape = { experts: 8, rows: 1, cols: 64, example: { name: 'experts.0.gate_proj.weight', rows: 1, cols: 64 } };
    const run = () => svd.plan([{ ...shape, factorised: true }], svd.complete({ rank: 1 }));
    expect(run).toThrow(NotSmallerError);
    expect(run).toThrow('Even rank 1 makes some experts no smaller. Leave them out with --layers or --projections');
  });

  test('the largest rank that is named is taken', async () => {
    const { groups } = await plan({ method: 'svd', rank: 47, layers: [0] });
    expect(groups).toHaveLength(2);
  });

  test('its model card says what the weights were replaced by', () => {
    const settings = resultSettings({
      ...resolveSettings({ method: 'svd', rank: 4 }),
      engine: 'onnx-cpu',
      precision: 'f32',
    });
    const sizes = { parametersBefore: 1, parametersAfter: 1, bytesBefore: 1, bytesAfter: 1 };
    const card = modelCard({ source: 'm', format: 'hf', ...sizes, settings, groups: [] });
    expect(card).toContain('# m, compressed with truncated SVD by expert');
    expect(card).toContain('were replaced by A·V. Made by');
  });
});

describe('records', () => {
  const record = (options: CompressOptions) =>
    resultSettings({ ...resolveSettings(options), engine: 'onnx-cpu', precision: 'f32' });

  test('name a method only where it is not MoBE, so that those of earlier versions are the same', () => {
    expect(Object.keys(record({ steps: 5 }))).toEqual([
      'format',
      'keep',
      'groups',
      'activation',
      'projections',
      'keepQuantized',
      'solver',
      'steps',
      'engine',
      'seed',
      'shardSize',
    ]);
    expect(record({ method: 'svd', format: 'hf', rank: 8 })).toMatchObject({
      method: 'svd',
      rank: 8,
      solver: 'svd',
      steps: 1,
    });
  });

  test('name the precision only if it is not f32, in which earlier versions fitted', () => {
    const settings = { ...resolveSettings({ steps: 5 }), engine: 'tensorflow' } as const;
    const [f32, tf32] = (['f32', 'tf32'] as const).map((precision) => resultSettings({ ...settings, precision }));
    expect(tf32).toEqual({ ...f32, precision: 'tf32' });
  });

  test('take a precision only for the solver that has several', () => {
    expect(() => resolveSettings({ solver: 'adam', precision: 'tf32' })).toThrow('the solver adam has f32 alone');
    expect(() => resolveSettings({ method: 'svd', rank: 8, precision: 'f32' })).toThrow('--precision');
  });
});

describe('factor files', () => {
  const folder = temporaryFolder();
  const report = {
    layer: 0,
    projection: 'gate_proj',
    group: 0,
    groups: 1,
    relativeError: 0.1,
    mse: 1,
    sigma: 1,
    steps: 1,
  } as const;
  const metadata = { sourceFingerprint: 'f', settings: {}, report };

  function write(group: GroupPlan, tensors = factorTensors(group)): string {
    const path = join(folder, factorFileName(group));
    const data = new Uint8Array(tensors.reduce((sum, { bytes }) => sum + bytes, 0));
    writeFileSync(path, Buffer.concat([encodeHeader(tensors, encodeFactorMetadata(group, metadata)), data]));
    return path;
  }
  const firstGroup = async (options: CompressOptions): Promise<GroupPlan> =>
    (await plan({ layers: [0], ...options })).groups[0] as GroupPlan;

  test.each<[CompressOptions, Record<string, number[]>, object]>([
    [
      { bases: 8, activation: 'tanh', groups: 2 },
      { A: [16, 64, 64], B: [4, 64, 192], alpha: [16, 4] },
      { activation: 'tanh' },
    ],
    [{ method: 'svd', rank: 5 }, { A: [32, 64, 5], V: [32, 5, 192] }, { method: 'svd' }],
  ])('come back as the problem they solve: %j', async (options, shapes, kept) => {
    const group = await firstGroup(options);
    const { method, problem, tensors, metadata: read } = await openFactorFile(write(group));
    expect(problem).toEqual(group.problem);
    expect(method).toBe(group.method);
    expect(Object.fromEntries(Object.entries(tensors).map(([name, { shape }]) => [name, shape]))).toEqual(shapes);
    expect(read).toEqual({ version: 1, ...kept, ...metadata });
  });

  test.each<[string, (tensors: ReturnType<typeof factorTensors>) => ReturnType<typeof factorTensors>]>([
    ['a missing factor', (tensors) => tensors.slice(0, 1)],
    ['a factor of another shape', ([A, V]) => [A, { ...V, shape: [32, 10, 96] }] as ReturnType<typeof factorTensors>],
    ['a factor of too few dimensions', ([A, V]) => [A, { ...V, shape: [32, 960] }] as ReturnType<typeof factorTensors>],
  ])('are refused with %s', async (_, change) => {
    const group = await firstGroup({ method: 'svd', rank: 5 });
    const path = write(group, change(factorTensors(group)));
    await expect(openFactorFile(path)).rejects.toThrow(FactorMismatchError);
    await expect(openFactorFile(path)).rejects.toThrow("is not a group's factors of truncated SVD by expert");
  });

  test('of a method that is not known are refused by its name', async () => {
    const group = await firstGroup({ method: 'svd', rank: 5 });
    const path = write({ ...group, method: { ...group.method, name: 'later' } });
    await expect(openFactorFile(path)).rejects.toThrow(
      'its method is "later", which this version of mobe does not know',
    );
  });
});
