/** Runs whose calibration record is made while it is used: their results are those of a record on disk. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { differingFiles } from '../../fixtures/compare-weights.js';
import { EVALUATION_TEXT, TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH, thoroughBut } from '../../fixtures/thorough.js';
import { layerFile } from '../../src/calibration/record.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { BudgetTooSmallError, InterruptedError, OptionError, UnfinishedRunError } from '../../src/errors.js';
import type { Progress, RunOptions } from '../run-options.js';
import { calibrate } from './calibrate.js';
import { type CalibrationText, calibrateAndCompress } from './calibrate-and-compress.js';
import { compress } from './compress.js';

const root = temporaryFolder();
const at = (...path: string[]): string => join(root, ...path);
const TEXT = { text: [EVALUATION_TEXT], tokens: 240, sequenceLength: 16 };
const OPTIONS = { steps: 6, threads: 1 } as const satisfies CompressOptions;

const run = (out: string, options: CompressOptions = {}, more: RunOptions = {}, text: CalibrationText = TEXT) =>
  calibrateAndCompress(TINY_MODEL, at(out), text, { ...OPTIONS, ...options }, more);
const workspace = (out: string): string => at(`.mobe-record-${out}`);
const left = (): string[] => readdirSync(root).filter((name) => name.startsWith('.mobe'));

/** Compares all files of two results, of their records what decides a run. */
function same(out: string, other: string): void {
  expect(differingFiles(at(out), at(other))).toEqual([]);
  const [mine, its] = [out, other].map((name) => JSON.parse(readFileSync(at(name, 'mobe.json'), 'utf8')));
  expect(mine.settings.calibration).toMatchObject({ tokens: 240, texts: [{ sha256: expect.any(String) }] });
  expect(mine.settings).toEqual(its.settings);
}

/** Stops a run when it has told so many times of something; of groups, only those of the result count. */
async function interrupted(out: string, options: CompressOptions, kind: Progress['kind'], times: number) {
  const stop = new AbortController();
  let told = 0;
  const onProgress = (it: Progress): void => {
    if (it.kind === kind && !(it.kind === 'group' && !converting) && ++told === times) stop.abort();
    if (it.kind === 'phase') converting = it.phase === 'convert';
  };
  let converting = false;
  await expect(run(out, options, { onProgress, signal: stop.signal })).rejects.toThrow(InterruptedError);
}

describe.each<[what: string, options: CompressOptions]>([
  ['calibrated', {}],
  ['uniform, standard weights', { allocate: 'uniform', format: 'hf', bases: 3 }],
  ['down_proj repaired', { allocate: 'uniform', repair: 'factors+down', bases: 3 }],
])('%s: the result is that of a record on disk', (what, options) => {
  const cost = thoroughBut('uniform, standard weights')(what);

  /** Makes the result of a record on disk, once; either test may be the first, or the only one, to run. */
  async function fromDisk(): Promise<void> {
    if (!existsSync(at('record'))) await calibrate(TINY_MODEL, at('record'), { ...TEXT, threads: 1 });
    await compress(TINY_MODEL, at(`${what}-disk`), { ...OPTIONS, ...options, calibration: at('record') });
  }

  test('in one go', { ...cost, timeout: 180_000 }, async () => {
    await fromDisk();
    const most: number[] = [];
    await run(what, options, {
      onProgress(it) {
        if (it.kind === 'layer' || it.kind === 'group')
          most.push(readdirSync(workspace(what)).filter((name) => /^layer-\d+\.safetensors$/.test(name)).length);
      },
    });
    expect(Math.max(...most)).toBeLessThanOrEqual(2);
    same(what, `${what}-disk`);
    expect(left()).toEqual([]);
    expect(await run(what, options)).toMatchObject({ already: true });
    expect(left()).toEqual([]);
  });

  test('interrupted in the pass and among the fits', { ...THOROUGH, timeout: 180_000 }, async () => {
    const out = `${what}-resumed`;
    await fromDisk();
    await interrupted(out, options, 'layer', 3);
    expect(left()).toEqual([`.mobe-record-${out}`]);
    await expect(run(out, options, {}, { ...TEXT, tokens: 120 })).rejects.toThrow(UnfinishedRunError);
    await interrupted(out, options, 'group', 5);
    const ran: number[] = [];
    await run(out, options, { onProgress: (it) => void (it.kind === 'layer' && ran.push(it.layer)) });
    same(out, `${what}-disk`);
    expect(left()).toEqual([]);
    // The first layer was finished, so its record is not made again.
    expect(Math.min(...ran)).toBeGreaterThan(0);
  });
});

test('what cannot be done is refused, and nothing is left', async () => {
  await expect(run('kl', { sensitivity: 'kl' })).rejects.toThrow(/^--sensitivity: .*mobe calibrate/);
  await expect(run('stage', {}, { ownStage: (all) => all })).rejects.toThrow(OptionError);
  const small = run('small', { maxMemory: 400 * 2 ** 20 });
  await expect(small).rejects.toThrow(BudgetTooSmallError);
  await expect(small).rejects.toThrow('--max-memory 400 MiB');
  writeFileSync(at('empty.txt'), '');
  await expect(run('empty', {}, {}, { text: [at('empty.txt')] })).rejects.toThrow(OptionError);
  expect(left()).toEqual([]);
});

test('--force begins again', THOROUGH, async () => {
  await interrupted('forced', { allocate: 'uniform' }, 'layer', 2);
  expect(readdirSync(workspace('forced'))).toContain(layerFile(0));
  await run('forced', { allocate: 'uniform' }, { force: true }, { ...TEXT, tokens: 120 });
  expect(left()).toEqual([]);
});
