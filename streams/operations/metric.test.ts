/** Runs with a calibration record: fits in its metric, on this machine or on workers, interrupted or not. */
import { cpSync, readdirSync, readFileSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { generateFamily, TINY } from '../../fixtures/generate-family.js';
import { generateRecord } from '../../fixtures/generate-record.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { thoroughBut } from '../../fixtures/thorough.js';
import { type FittedGroupReport, isFitted } from '../../src/conversion/run-report.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { BudgetTooSmallError, OutputNotEmptyError, UnsupportedModelError } from '../../src/errors.js';
import { work } from '../compute/worker.js';
import type { Progress, RunOptions, RunResult } from '../run-options.js';
import { compress } from './compress.js';

const root = temporaryFolder();
const at = (...path: string[]): string => join(root, ...path);
const SHAPE = { layers: 2, experts: 6, rows: 8, cols: 32 };
const OPTIONS = {
  ...{ bases: 2, steps: 20, threads: 1, allocate: 'uniform', dtype: 'float32' },
  calibration: at('record'),
} as const satisfies CompressOptions;

const run = (out: string, options: CompressOptions = {}, more: RunOptions = {}): Promise<RunResult> =>
  compress(at('model'), at(out), { ...OPTIONS, ...options }, { ...LARGER, ...more });

const fitted = ({ groups }: RunResult): FittedGroupReport[] => groups.filter(isFitted);

/** The bytes of the shards. */
const weightsOf = (out: string): Map<string, Buffer> =>
  new Map(
    readdirSync(at(out))
      .filter((file) => file.endsWith('.safetensors'))
      .map((file) => [file, readFileSync(at(out, file))]),
  );

const errors = (result: RunResult, projection?: string) =>
  fitted(result)
    .filter((it) => projection === undefined || it.projection === projection)
    .map(({ relativeError, metric }) => ({ plain: relativeError, inMetric: metric?.relativeError as number }));

let whole: RunResult;
beforeAll(async () => {
  await generateCheckpoint(at('model'), SHAPE);
  await generateRecord(at('record'), { model: at('model'), ...SHAPE, tokens: 400, unreached: 3 });
  whole = await run('whole');
});

test('all projections are fitted in the metric, and their errors in it are reported', async () => {
  const repaired = await run('repaired', { metric: 'none' });
  const plain = await run('plain', { metric: 'none', repair: 'none' });
  expect(whole.groups).toHaveLength(6);
  for (const projection of ['gate_proj', 'up_proj']) {
    for (const [i, { plain: error, inMetric }] of errors(whole, projection).entries()) {
      const [least, last] = [errors(plain, projection)[i], errors(repaired, projection)[i]];
      expect(inMetric).toBeLessThan(last?.inMetric as number);
      // The last A of a plain fit is no longer that of the least plain error.
      expect(last?.plain).toBeGreaterThan(least?.plain as number);
      expect(error).toBeGreaterThan(least?.plain as number);
    }
  }
  // The metric of down weighs rows, so it does not change the last A.
  expect(errors(repaired, 'down_proj').map(({ plain }) => plain)).toEqual(
    errors(plain, 'down_proj').map(({ plain }) => plain),
  );
  expect(errors(repaired, 'down_proj').map(({ inMetric }) => inMetric)).toEqual([undefined, undefined]);
  expect(whole.settings).toMatchObject({
    calibration: { tokens: 400, texts: [{ sha256: '0' }] },
    metric: { form: 'full', fit: true, shrinkage: expect.any(String) },
    repair: 'factors',
  });
});

test('an expert that no token reached has the covariance of all, and the report tells', () => {
  for (const { metric } of fitted(whole)) {
    expect(metric).toMatchObject({ unreached: [3], tokens: [0, expect.any(Number)] });
    expect(metric?.shrinkage[1]).toBe(0.4);
  }
  expect(whole.warnings?.filter((it) => it.includes('no token of the calibration text reached expert 3'))).toHaveLength(
    6,
  );
});

describe('the same bytes come', () => {
  const cost = thoroughBut('from a worker');
  const same = (out: string): void => {
    expect(weightsOf(out)).toEqual(weightsOf('whole'));
  };

  test('from a worker', { ...cost('from a worker') }, async () => {
    const worker = await work({ threads: 1 }, { host: '127.0.0.1', port: 0 });
    const result = await run('worked', {}, { workers: [worker.url] });
    await worker.close();
    same('worked');
    expect(errors(result)).toEqual(errors(whole));
  });

  test('from a run that was interrupted', { ...cost('interrupted') }, async () => {
    const controller = new AbortController();
    const onProgress = ({ kind }: Progress): void => {
      if (kind === 'group') controller.abort();
    };
    await expect(run('stopped', {}, { onProgress, signal: controller.signal })).rejects.toThrow();
    const { groups } = await run('stopped');
    same('stopped');
    expect(groups.map(({ layer, projection }) => `${layer} ${projection}`)).toEqual(
      whole.groups.map(({ layer, projection }) => `${layer} ${projection}`),
    );
  });

  test('from a copy of the record elsewhere, which is the same run', { ...cost('copy') }, async () => {
    cpSync(at('record'), at('copy'), { recursive: true });
    expect(await run('whole', { calibration: at('copy') })).toMatchObject({ already: true });
  });
});

test('a record of another text is another run', async () => {
  await generateRecord(at('other'), { model: at('model'), ...SHAPE, tokens: 400, seed: 1 });
  const other = run('whole', { calibration: at('other') });
  await expect(other).rejects.toThrow(OutputNotEmptyError);
  await expect(other).rejects.toThrow('calibration');
});

test('a layer that the record lacks is told before the first fit', async () => {
  cpSync(at('record'), at('lacking'), { recursive: true });
  rmSync(at('lacking', 'layer-001.safetensors'));
  let begun = false;
  const onProgress = (): void => {
    begun = true;
  };
  const lacking = run('lacking-out', { calibration: at('lacking') }, { onProgress });
  await expect(lacking).rejects.toThrow(/layer-001.safetensors: the file is missing/);
  expect(begun).toBe(false);
});

test('too small a budget is refused before a probe', async () => {
  const { allocate: _, ...options } = OPTIONS;
  cpSync(at('record'), at('unprobed'), { recursive: true });
  const small = (more: CompressOptions) =>
    compress(at('model'), at('small'), { ...options, calibration: at('unprobed'), ...more }, LARGER).catch((it) => it);
  const plain = await small({ metric: 'none', repair: 'none', maxMemory: 1e6 });
  expect(plain).toBeInstanceOf(BudgetTooSmallError);
  expect(await small({ maxMemory: parseInt(plain.smallest, 10) * 2 ** 20 })).toBeInstanceOf(BudgetTooSmallError);
  expect(readdirSync(at('unprobed')).filter((name) => name.startsWith('probes'))).toEqual([]);
});

test('a model that cannot be run is refused for --sensitivity kl before a probe', async () => {
  await generateFamily(at('mixtral'), 'mixtral');
  await generateRecord(at('mixtral-record'), { model: at('mixtral'), ...TINY, tokens: 40 });
  const options = { calibration: at('mixtral-record'), sensitivity: 'kl', bases: 2, threads: 1 } as const;
  await expect(compress(at('mixtral'), at('mixtral-out'), options)).rejects.toThrow(UnsupportedModelError);
  expect(readdirSync(at('mixtral-record')).filter((name) => name.startsWith('probes'))).toEqual([]);
});

test('experts cut into groups, with metrics of low rank', async () => {
  const result = await run('cut', { groups: 2, metric: 'low-rank', format: 'hf' });
  expect(result.settings).toMatchObject({ metric: { form: 'low-rank', rank: 16 } });
  expect(result.groups).toHaveLength(12);
  for (const { group, metric } of fitted(result)) {
    expect(metric?.relativeError).toBeGreaterThan(0);
    expect(metric?.unreached).toEqual(group === 1 ? [3] : undefined);
  }
});
