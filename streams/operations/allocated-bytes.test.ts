/** Results whose bytes were given: bases and dtypes by layer and projection, and everything that reads them. */
import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { differingFiles } from '../../fixtures/compare-weights.js';
import { generateCheckpoint } from '../../fixtures/generate.js';
import { generateFamily, TINY } from '../../fixtures/generate-family.js';
import { EVALUATION_TEXT, TINY_MODEL } from '../../fixtures/paths.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { dtypeNamed } from '../../src/checkpoint/factor-dtype.js';
import { describePlan } from '../../src/cli/describe-plan.js';
import type { Allocation } from '../../src/conversion/allocation.js';
import { conversionPage } from '../../src/conversion/report-page.js';
import { type CompressOptions, resolveSettings } from '../../src/conversion/settings.js';
import { InterruptedError, LargerOutputError, OptionError } from '../../src/errors.js';
import type { StoredDtypes } from '../../src/methods/factor-storage.js';
import { PROJECTIONS, type Projection } from '../../src/models/family.js';
import { work } from '../compute/worker.js';
import { calibrate } from './calibrate.js';
import { compress } from './compress.js';
import { evaluate } from './evaluate.js';
import { expand } from './expand.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { plan } from './plan.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const OUTPUT = { shardSize: 20_000, threads: 1 };
const QUICK: CompressOptions = { ...OUTPUT, steps: 6 };
const SIZES = { ...TINY, layers: 3, experts: 16 };
/** The weights of all experts. */
const WEIGHTS = SIZES.layers * 3 * SIZES.experts * SIZES.rows * SIZES.cols;

beforeAll(() => generateFamily(at('model'), 'qwen3_moe', { sizes: SIZES }));

/** The bytes of the routed experts of an allocation's layers in a native checkpoint. */
function bytesOfExperts(folder: string, { projections }: Allocation): number {
  const layers = new Set(projections.map(({ layer }) => layer));
  return [...readFolder(folder).values()]
    .filter(({ name }) => layers.has(Number(/^model\.layers\.(\d+)\.mlp\.(experts\.|B_|W_)/.exec(name)?.[1])))
    .reduce((sum, { bytes }) => sum + bytes.byteLength, 0);
}

const reportOf = (folder: string) => JSON.parse(readFileSync(at(folder, 'mobe.json'), 'utf8'));
const factorsOf = (folder: string) =>
  JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8')).mobe.factors as Array<Record<string, unknown>>;

type Cell = 'dense' | readonly [bases: number, own: string, shared: string];

/** An allocation from the bases and dtypes of gate, up and down, by layer. */
const allocation = (rows: ReadonlyArray<readonly Cell[]>): Allocation => ({
  measure: 'error',
  projections: rows.flatMap((row, layer) =>
    row.map((cell, i) => {
      const key = { layer, projection: PROJECTIONS[i] as Projection };
      if (cell === 'dense') return { ...key, bases: cell };
      const [own, shared] = cell.slice(1).map((name) => dtypeNamed(name, 64)) as [
        StoredDtypes['own'],
        StoredDtypes['own'],
      ];
      return { ...key, bases: cell[0], stored: { own, shared } };
    }),
  ),
});

describe('dtypes by layer and projection', () => {
  const rows = [
    [[2, 'int8', 'int8'], [3, 'int4', 'int5'], 'dense'],
    [[3, 'bfloat16', 'bfloat16'], 'dense', [3, 'int6', 'int6']],
    [
      [2, 'int5', 'int6'],
      [2, 'int5', 'int6'],
      [3, 'int4', 'int5'],
    ],
  ] as const;
  const options: CompressOptions = { ...QUICK, averageBits: 9, allocation: allocation(rows) };
  beforeAll(() => compress(at('model'), at('mixed'), options));

  test('are in the config, and the result is verified and expanded', async () => {
    const told = factorsOf('mixed').flatMap(({ layers, projections, bases, dtype, bases_dtype }) =>
      (layers as number[]).flatMap((layer) =>
        (projections as string[]).map((it) => [layer, it, bases, dtype, bases_dtype]),
      ),
    );
    const wanted = rows.flatMap((row, layer) =>
      row.flatMap((cell, i) => {
        if (cell === 'dense') return [];
        const [bases, own, shared] = cell;
        const dtypes = own === 'bfloat16' ? [undefined, undefined] : [own, shared];
        return [[layer, PROJECTIONS[i], bases, ...dtypes]];
      }),
    );
    expect(told.sort()).toEqual(wanted.sort());
    expect((await verify(at('model'), at('mixed'), { threads: 1 })).problems).toEqual([]);
    await expand(at('mixed'), at('mixed-expanded'), OUTPUT);
    expect((await verify(at('model'), at('mixed-expanded'), { threads: 1 })).problems).toEqual([]);
  });

  test('are those of factor files, whose export is the same result', async () => {
    await fitFactors(at('model'), at('factors'), options);
    await exportFactors(at('model'), at('factors'), at('exported'), OUTPUT);
    expect(differingFiles(at('exported'), at('mixed'))).toEqual([]);
    expect((await verify(at('model'), at('exported'), { threads: 1 })).problems).toEqual([]);
    await exportFactors(at('model'), at('factors'), at('exported-hf'), { ...OUTPUT, format: 'hf' });
    expect(differingFiles(at('exported-hf'), at('mixed-expanded'))).toEqual([]);
  });

  test('go on after an interruption, and come from a worker', async () => {
    const stop = new AbortController();
    const onProgress = ({ kind }: { kind: string }) => void (kind === 'group' && stop.abort());
    await expect(compress(at('model'), at('resumed'), options, { onProgress, signal: stop.signal })).rejects.toThrow(
      InterruptedError,
    );
    const other = { ...options, allocation: allocation([...rows.slice(0, 2), [rows[2][0], rows[2][1], 'dense']]) };
    await expect(compress(at('model'), at('resumed'), other)).rejects.toThrow('another allocation');
    const fitted: string[] = [];
    await compress(at('model'), at('resumed'), options, {
      onProgress: (it) => void (it.kind === 'group' && fitted.push(it.kind)),
    });
    expect(fitted.length).toBeLessThan(7);
    expect(differingFiles(at('resumed'), at('mixed'))).toEqual([]);
    const worker = await work({ threads: 1, maxMemory: 600e6 }, { host: '127.0.0.1', port: 0 });
    try {
      await compress(at('model'), at('remote'), options, { workers: [worker.url] });
    } finally {
      await worker.close();
    }
    expect(differingFiles(at('remote'), at('mixed'))).toEqual([]);
  });

  test('are refused for rebuilt weights', async () => {
    const run = compress(at('model'), at('never'), { ...options, format: 'hf' });
    await expect(run).rejects.toThrow(/^--allocation: .*--format mobe/);
  });
});

test('a model with dtypes by layer and projection runs as its expanded weights do', THOROUGH, async () => {
  const rows = [
    [[4, 'int4', 'int5'], 'dense', [8, 'int8', 'int8']],
    ['dense', 'dense', 'dense'],
    [[3, 'bfloat16', 'bfloat16'], [6, 'int6', 'int6'], 'dense'],
    [
      [4, 'int5', 'int6'],
      [9, 'int5', 'int6'],
      [2, 'int8', 'int8'],
    ],
  ] as const;
  await compress(TINY_MODEL, at('run'), { steps: 4, threads: 1, averageBits: 9, allocation: allocation(rows) });
  await expand(at('run'), at('run-expanded'), { threads: 1 });
  const text = at('text.txt');
  writeFileSync(text, 'The quick brown fox jumps over the lazy dog. '.repeat(12));
  const { models } = await evaluate([at('run'), at('run-expanded')], text, { threads: 1, window: 64 });
  const [factors, weights] = models.map(({ perplexity }) => perplexity) as [number, number];
  expect(Math.abs(factors / weights - 1)).toBeLessThan(0.01); // expanded weights are rounded once more
});

describe('a size in bytes', () => {
  test('is used and not exceeded; the record, the plan and the page tell what was chosen', {
    timeout: 180_000,
  }, async () => {
    const wanted: CompressOptions = { ...QUICK, averageBits: 6 };
    const { settings, bytesAfter } = await compress(at('model'), at('sized'), wanted);
    const chosen = settings.allocation as Allocation;
    expect(chosen.weights).toBe(WEIGHTS);
    expect(chosen.bytes).toBe(bytesOfExperts(at('sized'), chosen));
    expect((8 * (chosen.bytes as number)) / WEIGHTS).toBeLessThanOrEqual(6);
    expect((8 * (chosen.bytes as number)) / WEIGHTS).toBeGreaterThan(5.7);
    expect(settings).toMatchObject({ averageBits: 6, allocate: 'error', projections: PROJECTIONS });
    expect(settings).not.toHaveProperty('keep');
    expect((await verify(at('model'), at('sized'), { threads: 1 })).problems).toEqual([]);
    expect(conversionPage('model', reportOf('sized'))).toMatch(/Bases and dtypes by layer[\s\S]*<td>int\d/);
    expect(await compress(at('model'), at('sized'), wanted)).toMatchObject({ already: true });
    await expect(compress(at('model'), at('sized'), { ...wanted, averageBits: 7 })).rejects.toThrow(
      'averageBits 6, now 7',
    );
    const decided = await plan(at('model'), wanted, { curve: true });
    expect(decided.settings.allocation).toEqual(chosen);
    expect(decided.bytesAfter).toBe(bytesAfter);
    expect(describePlan(decided)).toMatch(/^experts .* bits a weight$/m);
    expect(describePlan(decided)).toMatch(/^ +2 +\S+ +int\S+ +\S+ [KM]?i?B +/m);
  });

  test('is planned before the short fits, as if all projections were alike', async () => {
    const planned = await plan(at('model'), { ...QUICK, keepBytes: 0.35 });
    expect(planned.probes).toMatchObject({ finished: false });
    expect(planned.settings.allocation).toBeUndefined();
    const dense = 2 * WEIGHTS;
    const { bytesBefore, bytesAfter } = planned;
    const kept = (bytesAfter - (bytesBefore - dense)) / dense;
    expect(kept).toBeLessThan(0.35 + 1e-6);
    expect(kept).toBeGreaterThan(0.33);
    expect(describePlan(planned)).toMatch(/^allocation .* spreads the bytes as if all projections were alike$/m);
  });

  test('with a dtype decides the number of bases alone', async () => {
    const { settings } = await compress(at('model'), at('int8'), { ...QUICK, averageBits: 9, dtype: 'int8' });
    const { projections } = settings.allocation as Allocation;
    const int8 = { code: 'int8', scaleGroup: 64 };
    for (const { bases, stored } of projections)
      expect(stored).toEqual(bases === 'dense' ? undefined : { own: int8, shared: int8 });
    expect(new Set(projections.map(({ bases }) => bases)).size).toBeGreaterThan(1);
    expect((settings.allocation as Allocation).bytes).toBe(
      bytesOfExperts(at('int8'), settings.allocation as Allocation),
    );
  });

  test('counts projections that stay dense, and what quantised experts are decoded to', async () => {
    await generateFamily(at('fp8'), 'deepseek_v3', { quantised: 'fp8', sizes: { experts: 16 } });
    for (const [keepQuantized, averageBits] of [
      [false, 9],
      [true, 6],
    ] as const) {
      const projections: Projection[] = ['gate_proj', 'down_proj'];
      const out = at(`fp8-${keepQuantized}`);
      const options = { ...QUICK, averageBits, projections, keepQuantized };
      const { settings } = await compress(at('fp8'), out, options, { allowLarger: true });
      const chosen = settings.allocation as Allocation;
      expect(chosen.bytes).toBe(bytesOfExperts(out, chosen));
      expect((8 * (chosen.bytes as number)) / (chosen.weights as number)).toBeLessThanOrEqual(averageBits);
      expect((await verify(at('fp8'), out, { threads: 1 })).problems).toEqual([]);
    }
    const larger = compress(at('fp8'), at('never'), { ...QUICK, averageBits: 12, dtype: 'bfloat16' });
    await expect(larger).rejects.toThrow(LargerOutputError);
    await expect(larger).rejects.toThrow('a smaller --average-bits');
  });

  test('counts a smaller rank that is chosen by default', async () => {
    await generateCheckpoint(at('square'), { layers: 1, experts: 16, rows: 44, cols: 64 });
    const { settings } = await compress(at('square'), at('square-out'), {
      ...QUICK,
      averageBits: 8,
      projections: ['gate_proj', 'up_proj'],
    });
    const chosen = settings.allocation as Allocation;
    expect(settings.rank).toBe(28);
    expect(chosen.bytes).toBe(bytesOfExperts(at('square-out'), chosen));
  });

  test('that is too small is refused before the short fits, with one that is possible', async () => {
    const options: CompressOptions = { ...QUICK, projections: ['gate_proj', 'up_proj'] };
    let probed = false;
    const run = compress(
      at('model'),
      at('never'),
      { ...options, averageBits: 3 },
      {
        onProgress() {
          probed = true;
        },
      },
    );
    await expect(run).rejects.toThrow(OptionError);
    const message = await run.catch(String);
    expect(probed).toBe(false);
    expect(message).toContain('in projections that are not factorised');
    const least = Number(/Use --average-bits ([\d.]+) or more/.exec(message as string)?.[1]);
    await plan(at('model'), { ...options, averageBits: least });
    await expect(plan(at('model'), { ...options, averageBits: least - 0.001 })).rejects.toThrow(OptionError);
  });

  test.each<[string, CompressOptions, RegExp]>([
    ['two of them', { averageBits: 3, keepBytes: 0.2 }, /^--average-bits: .*--keep-bytes/],
    ['with a share of parameters', { keepBytes: 0.2, keep: 0.5 }, /^--keep-bytes: .*--keep\b/],
    ['with bases', { averageBits: 3, bases: 4 }, /^--average-bits: .*--bases/],
    [
      'with a loss',
      { averageBits: 3, calibration: 'x', sensitivity: 'kl', maxLoss: 1 },
      /^--average-bits: .*--max-loss/,
    ],
    ['spread evenly', { averageBits: 3, allocate: 'uniform' }, /^--average-bits: .*Use --allocate error/],
    ['of rebuilt weights', { averageBits: 3, format: 'hf' }, /^--average-bits: .*Use --format mobe/],
    ['of another method', { averageBits: 3, method: 'svd', format: 'hf' }, /^--average-bits: .*Use --method mobe/],
  ])('%s is refused', (_, options, message) => {
    expect(() => resolveSettings(options)).toThrow(message);
  });
});

test('with a record, bytes go by what errors do', { ...THOROUGH, timeout: 180_000 }, async () => {
  await calibrate(TINY_MODEL, at('record'), { text: [EVALUATION_TEXT], tokens: 512, sequenceLength: 32, threads: 1 });
  const options: CompressOptions = { steps: 10, threads: 1, keepBytes: 0.25 };
  const { settings } = await compress(TINY_MODEL, at('calibrated'), { ...options, calibration: at('record') });
  const chosen = settings.allocation as Allocation;
  expect(settings).toMatchObject({ allocate: 'calibrated', sensitivity: 'local' });
  expect(chosen.measure).toBe('output');
  expect(chosen.bytes).toBe(bytesOfExperts(at('calibrated'), chosen));
  expect(chosen.bytes).toBeLessThanOrEqual(0.25 * 2 * (chosen.weights as number));
  expect((await verify(TINY_MODEL, at('calibrated'), { threads: 1 })).problems).toEqual([]);
});
