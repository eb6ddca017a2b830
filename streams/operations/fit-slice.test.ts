/** Slices of a fit, which processes without a connection write into one folder. */
import { copyFileSync, existsSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { isFactorFile } from '../../src/conversion/factor-files.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import { PARTIAL_FOLDER } from '../../src/output/journal.js';
import type { Progress, RunOptions, RunResult } from '../run-options.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const OPTIONS: CompressOptions = { bases: 2, steps: 60, threads: 1 };

const slice = (
  folder: string,
  index: number,
  count: number,
  run: RunOptions = {},
  options = OPTIONS,
): Promise<RunResult> => fitFactors(at('model'), folder, options, { ...run, slice: { index, count } });

/** The files of a folder by name, except the record, which has timings. */
const files = (folder: string): Record<string, Buffer> =>
  Object.fromEntries(
    readdirSync(folder)
      .filter((name) => name !== 'mobe.json' && name !== PARTIAL_FOLDER)
      .map((name) => [name, readFileSync(join(folder, name))]),
  );

const factors = (folder: string): Record<string, Buffer> =>
  Object.fromEntries(Object.entries(files(folder)).filter(([name]) => isFactorFile(name)));

const labels = ({ groups }: RunResult): string[] => groups.map(({ layer, projection }) => `${layer} ${projection}`);

beforeAll(async () => {
  await generateCheckpoint(at('model'), { layers: 3, experts: 4, rows: 16, cols: 64, shardBytes: 6000 });
  await fitFactors(at('model'), at('whole'), OPTIONS);
});

describe('slices that run side by side', () => {
  test('write the bytes of one fit, each its own groups, and the last one the record of all', async () => {
    const results = await Promise.all([0, 1, 2, 3].map((index) => slice(at('side'), index, 4)));
    expect(results.map(labels)).toEqual([
      ['0 gate_proj', '2 gate_proj'],
      ['0 up_proj', '2 up_proj'],
      ['1 gate_proj'],
      ['1 up_proj'],
    ]);
    expect(factors(at('side'))).toEqual(factors(at('whole')));
    const again = await fitFactors(at('model'), at('side'), OPTIONS);
    expect(again.already).toBe(true);
    expect(labels(again)).toHaveLength(6);
    expect(existsSync(at('side', PARTIAL_FOLDER))).toBe(false);
    await exportFactors(at('model'), at('side'), at('exported'));
    await exportFactors(at('model'), at('whole'), at('whole-exported'));
    expect(files(at('exported'))).toEqual(files(at('whole-exported')));
  });

  test('write the same files if one of them was taken for dead and started twice', async () => {
    await Promise.all([0, 0, 1, 1].map((index) => slice(at('twice'), index, 2)));
    expect(factors(at('twice'))).toEqual(factors(at('whole')));
    expect(readdirSync(at('twice')).filter((name) => name.endsWith('.partial'))).toEqual([]);
  });

  test('divide by σ of all experts, though each fits some of them', async () => {
    const options = { ...OPTIONS, groups: 2 };
    await fitFactors(at('model'), at('whole-cut'), options);
    await Promise.all([0, 1, 2].map((index) => slice(at('cut'), index, 3, {}, options)));
    expect(factors(at('cut'))).toEqual(factors(at('whole-cut')));
  });

  test('may be more than there are groups', async () => {
    const { groups } = await slice(at('many'), 6, 7);
    expect(groups).toEqual([]);
  });
});

test('an export before all slices have ended names those that are missing', async () => {
  await slice(at('some'), 1, 3);
  const exporting = exportFactors(at('model'), at('some'), at('never'));
  await expect(exporting).rejects.toThrow(errors.MissingSlicesError);
  await expect(exporting).rejects.toThrow(
    /lacks 4 of the 6 factor files of its slices: slice 0\/3 \(layer-000.gate_proj.safetensors, layer-001.up_proj.safetensors\), slice 2\/3 .* "mobe fit --shard 0\/3"/,
  );
  expect(existsSync(at('never'))).toBe(false);
  for (const index of [0, 2]) await slice(at('some'), index, 3);
  await exportFactors(at('model'), at('some'), at('at-last'));
});

describe('an interrupted slice', () => {
  test('goes on inside its fit, also when another slice has ended in between', async () => {
    const options = { ...OPTIONS, steps: 3000, quality: 'best' } as const;
    const controller = new AbortController();
    const onStep = (progress: Progress): void => {
      if (progress.kind === 'step' && progress.step >= 5) controller.abort();
    };
    const stopped = slice(at('stopped'), 0, 6, { onProgress: onStep, signal: controller.signal }, options);
    await expect(stopped).rejects.toThrow(errors.InterruptedError);
    await expect(stopped).rejects.toMatchObject({ kept: at('stopped') });
    await slice(at('stopped'), 1, 6, {}, options);
    const steps: number[] = [];
    const onProgress = (progress: Progress): void => {
      if (progress.kind === 'step') steps.push(progress.step);
    };
    await slice(at('stopped'), 0, 6, { onProgress }, options);
    expect(steps[0]).toBeGreaterThan(5);
    await slice(at('not-stopped'), 0, 6, {}, options);
    expect(factors(at('stopped'))).toMatchObject(factors(at('not-stopped')));
  });

  test('that was killed leaves nothing beside the finished file', async () => {
    mkdirSync(at('killed'));
    writeFileSync(at('killed', 'layer-000.gate_proj.safetensors.0123456789ab.partial'), 'half');
    mkdirSync(at('killed', PARTIAL_FOLDER));
    writeFileSync(at('killed', PARTIAL_FOLDER, '.layer-000.gate_proj.state.0123456789ab.new'), 'half');
    await slice(at('killed'), 0, 6);
    expect(readdirSync(at('killed')).filter((name) => name.includes('partial') && name !== PARTIAL_FOLDER)).toEqual([]);
    expect(readdirSync(at('killed', PARTIAL_FOLDER))).toEqual([]);
  });
});

describe('a slice is refused', () => {
  test('in a folder that a whole fit has for itself', async () => {
    mkdirSync(at('locked', PARTIAL_FOLDER), { recursive: true });
    const holder = { pid: process.ppid, host: hostname(), since: 'now' };
    writeFileSync(at('locked', PARTIAL_FOLDER, '.lock'), JSON.stringify(holder));
    await expect(slice(at('locked'), 0, 2)).rejects.toThrow(errors.FolderLockedError);
  });

  test('in a folder with factors of other settings', async () => {
    mkdirSync(at('foreign'));
    copyFileSync(at('whole', 'layer-001.up_proj.safetensors'), at('foreign', 'layer-001.up_proj.safetensors'));
    await expect(slice(at('foreign'), 0, 2, {}, { ...OPTIONS, seed: 1 })).rejects.toThrow(
      'holds layer-001.up_proj.safetensors from another source or other settings',
    );
  });

  test('if there is no such slice, or each would decide sizes by itself', async () => {
    await expect(slice(at('x'), 2, 2)).rejects.toThrow('of 2 slices the last is 1/2');
    await expect(slice(at('x'), 0, 2, {}, { steps: 60, allocate: 'error' })).rejects.toThrow('Give --allocate uniform');
    await expect(slice('ws://host/', 0, 2)).rejects.toThrow('--shard: slices write into a folder');
  });
});
