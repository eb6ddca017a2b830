/** The bytes of published quantised checkpoints before and after, from headers alone. */
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { DEEPSEEK_V3, KIMI_K2_THINKING, writeSparseCheckpoint } from '../../fixtures/sparse-checkpoint.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { LargerOutputError } from '../../src/errors.js';
import { compress } from './compress.js';
import { plan } from './plan.js';

const folder = temporaryFolder();
const SHARD = 5e9;
/** More than any machine that tests run on: plans of whole models need it, and nothing is fitted. */
const MEMORY = { maxMemory: 2 ** 40 } as const;

const share = async (name: string, options: CompressOptions): Promise<number> => {
  const { bytesBefore, bytesAfter } = await plan(join(folder, name), { ...MEMORY, ...options });
  return bytesAfter / bytesBefore;
};

describe('DeepSeek-V3, FP8', { ...THOROUGH, timeout: 120_000 }, () => {
  const name = 'deepseek';
  beforeAll(async () => {
    await writeSparseCheckpoint(join(folder, name), DEEPSEEK_V3.tensors(), SHARD, DEEPSEEK_V3.config);
  }, 120_000);

  test('has int8 factors of all three projections by default', async () => {
    const { settings, groups, bytesBefore } = await plan(join(folder, name), { ...MEMORY, bases: 64 });
    expect(settings).toMatchObject({ dtype: 'int8', basesDtype: 'int8' });
    expect(new Set(groups.map(({ projection }) => projection)).size).toBe(3);
    expect(bytesBefore / 2 ** 30).toBeCloseTo(627, -1);
  });
  test('with 64 bases is at most 0.76 of its size, with the default number at most 0.85', async () => {
    expect(await share(name, { bases: 64 })).toBeLessThan(0.6);
    expect(await share(name, { bases: 64, projections: ['gate_proj', 'up_proj'], keepQuantized: true })).toBeLessThan(
      0.76,
    );
    expect(await share(name, {})).toBeLessThan(0.85);
  });
  test('fits 24 GiB; within 16 GiB it is refused, with the number of groups that does', async () => {
    const small = (options: CompressOptions) =>
      plan(join(folder, name), { bases: 64, maxMemory: 16 * 2 ** 30, ...options });
    expect((await small({ maxMemory: 24 * 2 ** 30 })).memory.expectedBytes).toBeLessThanOrEqual(24 * 2 ** 30);
    const { groups } = await small({}).catch(
      ({ message }) => /With --groups (?<groups>\d+), /.exec(message)?.groups ?? {},
    );
    expect(Number(groups)).toBeGreaterThan(1);
    expect((await small({ groups: Number(groups) })).memory.expectedBytes).toBeLessThanOrEqual(16 * 2 ** 30);
    await expect(small({ groups: Number(groups) / 2 })).rejects.toThrow(/smallest that works/);
  });
  test('as rebuilt weights in its own quantisation has its size', async () => {
    expect(await share(name, { format: 'hf', keepQuantized: true })).toBeCloseTo(1, 2);
  });
  test('is refused in bf16, by the bytes, before anything is written', async () => {
    const refused = compress(join(folder, name), join(folder, 'out'), { ...MEMORY, bases: 64, dtype: 'bfloat16' });
    await expect(refused).rejects.toThrow(LargerOutputError);
    await expect(refused).rejects.toThrow(
      /because quantised weights are decoded\. Give --dtype int8, .* --allow-larger/,
    );
  });
});

describe('Kimi-K2-Thinking, INT4', { ...THOROUGH, timeout: 120_000 }, () => {
  const name = 'kimi';
  beforeAll(async () => {
    await writeSparseCheckpoint(join(folder, name), KIMI_K2_THINKING.tensors(), SHARD, KIMI_K2_THINKING.config);
  }, 120_000);

  test('shrinks by default with factors of 4 bits, and is refused with 8', async () => {
    expect((await plan(join(folder, name), MEMORY)).settings).toMatchObject({ dtype: 'int4', basesDtype: 'int5' });
    expect(await share(name, {})).toBeLessThan(0.9);
    expect(await share(name, { dtype: 'int5' })).toBeLessThan(1);
    const refused = compress(join(folder, name), join(folder, 'out'), { ...MEMORY, dtype: 'int8' });
    await expect(refused).rejects.toThrow(LargerOutputError);
    await expect(refused).rejects.toThrow('--dtype int4');
  });
});
