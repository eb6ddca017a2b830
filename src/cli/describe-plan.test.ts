import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { generateFamily } from '../../fixtures/generate-family.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { planCompression } from '../conversion/compression-plan.js';
import { type CompressOptions, resultSettings } from '../conversion/settings.js';
import { formatBytes } from '../format.js';
import { describePlan } from './describe-plan.js';

const plan = async (options: CompressOptions, model = TINY_MODEL) => ({
  ...(await planCompression(await openCheckpoint(model), { threads: 1, ...options })),
  estimatedSeconds: 1,
});

test('says what memory is for, as far as there is any', async () => {
  const planned = await plan({ bases: 8 });
  const text = describePlan(planned);
  expect(text).toContain(`${formatBytes(planned.memory.terms.state)}  the solver's state`);
  expect(text).toContain('tensors that are copied');
  expect(text).not.toContain('connections');
});

test('says where weights are read twice', async () => {
  const held = await plan({ bases: 8, groups: 4, batchExperts: 1 });
  expect(describePlan(held)).not.toContain('twice');
  const least = await plan({ bases: 8, groups: 4, batchExperts: 1, maxMemory: held.memory.expectedBytes - 1 });
  expect(least.memory.holdParts).toBe(false);
  expect(describePlan(least)).toContain('read twice');
});

describe('where the default share is not possible at full rank', () => {
  const folder = join(temporaryFolder(), 'model');
  beforeAll(() => generateCheckpoint(folder, { layers: 2, experts: 16, rows: 44, cols: 64 }));

  test('one line says what was chosen and why, and the record has it', async () => {
    const planned = await plan({}, folder);
    expect(describePlan(planned).match(/^sizes .*$/gm)).toEqual([
      "sizes         76.0 % of the experts' parameters cannot be kept at full rank, where the least is 83.4 %: the sizes of least expected error are taken, rank 28 and 5 bases; they keep 75.9 %",
    ]);
    expect(planned.groups[0]?.problem).toMatchObject({ rank: 28, bases: 5 });
    expect(resultSettings(planned.settings)).toMatchObject({ rank: 28, bases: 5 });
    expect(resultSettings(planned.settings)).not.toHaveProperty('keep');
    expect(describePlan(await plan({ rank: 28, bases: 5 }, folder))).not.toMatch(/^sizes/m);
  });

  test('the error for a share names the option', async () => {
    await expect(plan({ keep: 0.76 }, folder)).rejects.toThrow(/^--keep: .*Use --keep 0\.834, or --rank 28,/);
    await expect(plan({ rank: 44 }, folder)).rejects.toThrow(/^--rank: .*Use --keep 0\.834, or --rank 28,/);
  });
});

test('says if the output is larger, and why', async () => {
  expect(describePlan(await plan({ format: 'hf' }))).not.toContain('larger');
  expect(describePlan(await plan({ format: 'hf', dtype: 'float32' }))).toMatch(
    /^note: The output has 1\d\.\d MiB of tensors, 1\d\d\.\d % of the source's 10\.0 MiB\. Leave out --dtype float32\. .*--allow-larger\.$/m,
  );
  const quantised = { before: 3, after: 0 };
  const decoded = { ...(await plan({ format: 'hf' })), quantised, bytesAfter: 2e9 };
  expect(describePlan(decoded)).toMatch(/because quantised weights are decoded\. Give --keep-quantized/);
  const groups = decoded.groups.map((group) => ({
    ...group,
    experts: group.experts.map((it) => ({
      ...it,
      encoding: { kind: 'awq', scaleDtype: 'F16', groups: 1, groupSize: 64 } as const,
    })),
  }));
  const kept = { ...decoded, groups, settings: { ...decoded.settings, keepQuantized: true } };
  expect(describePlan(kept)).toMatch(
    /^note: the experts of layer .* are decoded to bfloat16, which takes \d\.\d times their bytes, in spite of --keep-quantized: .*AWQ/m,
  );
  expect(describePlan(decoded)).not.toContain('in spite of');
});

test('kept FP8 weights whose last blocks are cut short have a note in native plans', async () => {
  const folder = join(temporaryFolder(), 'fp8');
  await generateFamily(folder, 'deepseek_v3', { quantised: 'fp8' });
  const note = /^note: model\.\S+ \(40 × 16 in blocks of 12 × 16\) and 71 other weights stay in FP8 .*transformers 5/m;
  expect(describePlan(await plan({ bases: 2, keepQuantized: true }, folder))).toMatch(note);
  for (const options of [{ bases: 2 }, { bases: 2, keepQuantized: true, format: 'hf' }] as const)
    expect(describePlan(await plan(options, folder))).not.toMatch(note);
});
