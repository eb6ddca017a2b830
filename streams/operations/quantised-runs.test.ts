/** Runs whose factors are quantised, with all that a run can have: repairs, allocations, limits of the error, imports. */
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateFamily } from '../../fixtures/generate-family.js';
import { randomLayer } from '../../fixtures/memory-record.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { writeRecord } from '../../fixtures/write-record.js';
import { fingerprint, openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { isFitted, isKept, isRepaired } from '../../src/conversion/run-report.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { InterruptedError } from '../../src/errors.js';
import type { Progress } from '../run-options.js';
import { compress } from './compress.js';
import { expand } from './expand.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { repair } from './repair.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const SIZES = { layers: 2, experts: 6, rows: 16, cols: 40 };
const OUTPUT = { threads: 1, shardSize: 20_000 };
const QUICK: CompressOptions = { bases: 2, steps: 4, ...OUTPUT };
const TWO: CompressOptions = { ...QUICK, projections: ['gate_proj', 'up_proj'] };
const ALL: CompressOptions = { ...QUICK, projections: ['gate_proj', 'up_proj', 'down_proj'] };
/** Options of a run with a record that uses it for the repair alone. */
const REPAIR_ALONE = { metric: 'none', allocate: 'uniform' } as const;

beforeAll(async () => {
  await generateFamily(at('model'), 'qwen3_moe', { sizes: SIZES });
  const layers = [0, 1].map((layer) =>
    randomLayer(layer, { tokens: 300, width: SIZES.cols, experts: SIZES.experts, expertsPerToken: 2 }),
  );
  const sourceFingerprint = await fingerprint(await openCheckpoint(at('model')));
  await writeRecord(at('record'), { sequences: 3, length: 100, sourceFingerprint }, layers);
});

const expectSound = async (folder: string) =>
  expect((await verify(at('model'), at(folder), { threads: 1 })).problems).toEqual([]);

/** The dtypes and shapes of all tensors. */
const layout = (folder: string) =>
  [...readFolder(at(folder)).values()].map(({ name, dtype, shape }) => `${name} ${dtype} ${shape}`).sort();

describe('a repair', () => {
  const calibration = at('record');
  const metricErrors = (groups: Awaited<ReturnType<typeof repair>>['groups']) =>
    groups.filter(isFitted).map(({ metric }) => metric?.relativeError as number);

  test.each([
    ['int8', TWO],
    ['int5', ALL],
  ] as const)('keeps %s factors as they are stored, fits them, and is that of one run', async (dtype, sizes) => {
    const options = { ...sizes, dtype };
    const name = (it: string) => `${dtype}-${it}`;
    await compress(at('model'), at(name('plain')), options);
    const repaired = await repair(at('model'), at(name('plain')), at(name('repaired')), { calibration, ...OUTPUT });
    expect(layout(name('repaired'))).toEqual(layout(name('plain')));
    const together = { ...options, ...REPAIR_ALONE, calibration, repair: 'factors+down' } as const;
    await compress(at('model'), at(name('together')), together);
    expect(readFolder(at(name('together')))).toEqual(readFolder(at(name('repaired'))));
    await expectSound(name('repaired'));
    expect(repaired.groups.filter(isRepaired)).toHaveLength(sizes === TWO ? 2 : 0);

    // The bases and coefficients stay, and the floats' errors are nearly reached.
    const [before, after] = [name('plain'), name('repaired')].map((it) => readFolder(at(it)));
    let shared = 0;
    for (const [tensor, { bytes }] of before ?? [])
      if (/\.[BW]_(gate|up|down)/.test(tensor)) {
        expect(Buffer.compare(after?.get(tensor)?.bytes ?? Buffer.of(), bytes), tensor).toBe(0);
        shared++;
      }
    expect(shared).toBeGreaterThan(0);
  });

  test('of factor files gives the repaired checkpoint, in errors not far above those of floats', async () => {
    const made = async (dtype: 'bfloat16' | 'int5') => {
      await fitFactors(at('model'), at(`files-${dtype}`), { ...TWO, dtype });
      const out = at(`files-${dtype}-repaired`);
      return repair(at('model'), at(`files-${dtype}`), out, { calibration, ...OUTPUT, repair: 'factors' });
    };
    const floats = metricErrors((await made('bfloat16')).groups);
    const codes = metricErrors((await made('int5')).groups);
    for (const [i, error] of codes.entries()) {
      expect(error).toBeGreaterThan(floats[i] as number);
      expect(error).toBeLessThan((floats[i] as number) + 0.1);
    }
    await compress(at('model'), at('int5-two'), { ...TWO, dtype: 'int5' });
    await repair(at('model'), at('int5-two'), at('int5-two-repaired'), { calibration, ...OUTPUT, repair: 'factors' });
    await exportFactors(at('model'), at('files-int5-repaired'), at('files-export'), OUTPUT);
    expect(readFolder(at('files-export'))).toEqual(readFolder(at('int5-two-repaired')));
  });

  test('that was stopped in the middle of a fit goes on', async () => {
    const options = { ...TWO, ...REPAIR_ALONE, calibration, repair: 'factors+down', dtype: 'int4' } as const;
    await compress(at('model'), at('stopped-whole'), options);
    const controller = new AbortController();
    let steps = 0;
    const onProgress = ({ kind }: Progress): void => {
      if (kind === 'step' && ++steps === 3) controller.abort();
    };
    const running = compress(at('model'), at('stopped'), options, { onProgress, signal: controller.signal });
    await expect(running).rejects.toThrow(InterruptedError);
    await compress(at('model'), at('stopped'), options);
    expect(readFolder(at('stopped'))).toEqual(readFolder(at('stopped-whole')));
  });
});

describe('an allocation', () => {
  const keep = { steps: 4, keep: 0.75, layers: [1], ...OUTPUT };

  test('by error of factors in few bits', async () => {
    await compress(at('model'), at('allocated'), { ...keep, allocate: 'error', dtype: 'int4' });
    await expectSound('allocated');
    expect(layout('allocated').filter((it) => it.includes('.weight_packed I32')).length).toBeGreaterThan(0);
  });

  test('by layer outputs of a calibrated run', async () => {
    await compress(at('model'), at('calibrated'), { ...keep, calibration: at('record'), dtype: 'int5' });
    await expectSound('calibrated');
    expect(layout('calibrated').filter((it) => it.includes('.weight_packed I32')).length).toBeGreaterThan(0);
  });

  test('on the trained fixture, all projections', { ...THOROUGH, timeout: 180_000 }, async () => {
    const { groups } = await compress(TINY_MODEL, at('trained'), {
      ...{ steps: 60, keep: 0.72, threads: 1, allocate: 'error', dtype: 'int5' },
      projections: ['gate_proj', 'up_proj', 'down_proj'],
    });
    expect((await verify(TINY_MODEL, at('trained'), { threads: 1 })).problems).toEqual([]);
    for (const group of groups.filter(isFitted)) expect(group.relativeError).toBeLessThan(0.5);
  });
});

test('--max-error judges what is stored, codes included', async () => {
  const floats = await compress(at('model'), at('limit-floats'), { ...ALL, dtype: 'bfloat16' });
  const codes = await compress(at('model'), at('limit-codes'), { ...ALL, dtype: 'int4' });
  const errors = codes.groups.filter(isFitted).map(({ relativeError }) => relativeError);
  const exact = floats.groups.filter(isFitted).map(({ relativeError }) => relativeError);
  const most = Math.max(...errors);
  expect(most).toBeGreaterThan(Math.max(...exact));
  // Between the two, only codes are above the limit.
  const maxError = (most + Math.max(...errors.filter((it) => it < most), ...exact)) / 2;
  const options: CompressOptions = { ...ALL, format: 'hf', maxError };
  expect((await compress(at('model'), at('limit-hf'), { ...options, dtype: 'bfloat16' })).groups.some(isKept)).toBe(
    false,
  );
  await fitFactors(at('model'), at('limit-files'), { ...ALL, dtype: 'int4' });
  const { groups } = await exportFactors(at('model'), at('limit-files'), at('limit-export'), {
    ...{ ...OUTPUT, format: 'hf', maxError },
  });
  expect(groups.filter(isKept)).toHaveLength(1);
  await expectSound('limit-export');
  await expand(at('limit-codes'), at('limit-expanded'), OUTPUT);
  await expectSound('limit-expanded');
});
