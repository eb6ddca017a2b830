import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { differingFiles } from '../../fixtures/compare-weights.js';
import { generateFamily, TINY } from '../../fixtures/generate-family.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { describePlan } from '../../src/cli/describe-plan.js';
import type { Allocation } from '../../src/conversion/allocation.js';
import { groupLabel } from '../../src/conversion/group-plan.js';
import { type CompressOptions, resolveSettings } from '../../src/conversion/settings.js';
import { InterruptedError, OptionError, OutputInsideInputError, OutputNotEmptyError } from '../../src/errors.js';
import { PROJECTIONS, type Projection } from '../../src/models/family.js';
import { compress } from './compress.js';
import { evaluate } from './evaluate.js';
import { expand } from './expand.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { generate } from './generate.js';
import { inspect } from './inspect.js';
import { plan } from './plan.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const OUTPUT = { shardSize: 20_000, threads: 1 };

type Row = readonly [...bases: ReadonlyArray<number | 'dense'>];

/** An allocation from the bases of gate, up and down, by layer. */
const allocation = (rows: readonly Row[]): Allocation => ({
  measure: 'error',
  projections: rows.flatMap((row, layer) =>
    row.map((bases, i) => ({
      layer,
      projection: PROJECTIONS[i] as Projection,
      bases,
      predicted: 0.1,
      sensitivity: 0.2,
    })),
  ),
});

const uneven = (...rows: Row[]): CompressOptions => ({
  ...{ ...OUTPUT, steps: 4, projections: [...PROJECTIONS], allocate: 'error' },
  allocation: allocation(rows),
});

const factorsOf = (folder: string) => JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8')).mobe.factors;

describe.each<[source: string, groups: number, rows: readonly Row[]]>([
  [
    'fused experts',
    1,
    [
      [2, 3, 1],
      ['dense', 4, 'dense'],
      ['dense', 'dense', 'dense'],
    ],
  ],
  [
    'separate experts in two groups',
    2,
    [
      [2, 4, 'dense'],
      ['dense', 'dense', 'dense'],
      [4, 'dense', 2],
    ],
  ],
])('bases by layer and projection, of %s', (source, groups, rows) => {
  const options = { ...uneven(...rows), groups };
  const [model, native] = [at(source), at(`${source}-native`)];

  beforeAll(async () => {
    await generateFamily(model, 'qwen3_moe', { sizes: { ...TINY, layers: 3 }, fused: groups === 1 });
    await compress(model, native, options);
  });

  test('are in the config; what stays dense is not', () => {
    const told = (
      factorsOf(`${source}-native`) as Array<{ layers: number[]; projections: Projection[]; bases: number }>
    )
      .flatMap(({ layers, projections, bases }) =>
        layers.flatMap((layer) => projections.map((it) => [layer, it, bases])),
      )
      .sort();
    const wanted = rows.flatMap((row, layer) =>
      row.flatMap((bases, i) => (bases === 'dense' ? [] : [[layer, PROJECTIONS[i], bases]])),
    );
    expect(told).toEqual(wanted.sort());
    expect([...readFolder(native).keys()].filter((name) => name.includes('.2.mlp.B_'))).toHaveLength(
      groups === 1 ? 0 : 4,
    );
  });

  test('are verified, expanded and exported', async () => {
    expect((await verify(model, native, { threads: 1 })).problems).toEqual([]);
    await compress(model, at(`${source}-hf`), { ...options, format: 'hf' });
    await expand(native, at(`${source}-expanded`), OUTPUT);
    expect(differingFiles(at(`${source}-expanded`), at(`${source}-hf`))).toEqual([]);
    const fitted = await fitFactors(model, at(`${source}-factors`), options);
    expect(fitted.files.filter((name) => name.startsWith('layer-'))).toHaveLength(
      groups * rows.flat().filter((it) => it !== 'dense').length,
    );
    const exported = await exportFactors(model, at(`${source}-factors`), at(`${source}-exported`), OUTPUT);
    expect(exported.settings.allocation).toEqual(options.allocation);
    expect(differingFiles(at(`${source}-exported`), native)).toEqual([]);
    expect((await fitFactors(model, at(`${source}-factors`), options)).already).toBe(true);
    expect(await inspect(native)).toMatchObject({ native: true, expertsPerLayer: TINY.experts });
  });
});

test('equal bases write the config fields of the reference', async () => {
  const model = at('separate experts in two groups');
  await compress(model, at('even'), uneven([3, 3, 3], [3, 3, 3], [3, 3, 3]));
  await compress(model, at('plain'), { ...OUTPUT, steps: 4, projections: [...PROJECTIONS], bases: 3 });
  expect(differingFiles(at('even'), at('plain'))).toEqual([]);
  expect(JSON.parse(readFileSync(at('even', 'config.json'), 'utf8'))).toMatchObject({ num_B: 3, activation: 'silu' });
});

test('an allocation that leaves out a projection is refused', async () => {
  const run = compress(at('separate experts in two groups'), at('never'), uneven([2, 2, 2], [2, 2, 2], [2, 2]));
  await expect(run).rejects.toThrow(OptionError);
  await expect(run).rejects.toThrow('layer 2 down_proj');
});

test('a model with bases by layer and projection runs like its expansion', THOROUGH, async () => {
  await compress(
    TINY_MODEL,
    at('run'),
    uneven([4, 'dense', 8], ['dense', 'dense', 'dense'], [3, 3, 'dense'], ['dense', 9, 2]),
  );
  await expand(at('run'), at('run-expanded'), { threads: 1 });
  const text = readFileSync(join(TINY_MODEL, 'config.json'), 'utf8');
  const { models } = await evaluate([at('run'), at('run-expanded')], text, { threads: 1 });
  expect(models[1]?.nll).toBeCloseTo(models[0]?.nll as number, 3);
  const texts = [];
  for (const folder of ['run', 'run-expanded']) {
    const run = generate(at(folder), 'def ', { threads: 1, maxNewTokens: 12 });
    let told = '';
    for (let step = await run.next(); !step.done; step = await run.next()) told += step.value;
    texts.push(told);
  }
  expect(texts[0]).toBe(texts[1]);
});

describe('an allocation that is decided from short fits', () => {
  const wanted: CompressOptions = { ...OUTPUT, steps: 6, bases: 3, allocate: 'error', projections: [...PROJECTIONS] };
  const probesBeside = () => readdirSync(root).filter((name) => name.startsWith('.mobe-probes'));
  let model: string;

  beforeAll(async () => {
    model = at('probed');
    await generateFamily(model, 'qwen3_moe', { sizes: { ...TINY, layers: 3 } });
  });

  test('is in the record; the same command finds its result; an interrupted one goes on from its probes', async () => {
    const whole = await compress(model, at('probed-native'), wanted);
    const { measure, projections } = whole.settings.allocation as Allocation;
    expect([measure, projections.length]).toEqual(['error', 9]);
    expect(probesBeside()).toEqual([]);
    expect((await verify(model, at('probed-native'), { threads: 1 })).problems).toEqual([]);
    const fitted: string[] = [];
    const again = await compress(model, at('probed-native'), wanted, {
      onProgress: (it) => void (it.kind === 'group' && fitted.push(groupLabel(it.report))),
    });
    expect([again.already, fitted]).toEqual([true, []]);

    const stop = new AbortController();
    let groups = 0;
    const interrupted = compress(model, at('probed-resumed'), wanted, {
      signal: stop.signal,
      onProgress: (it) => void (it.kind === 'group' && ++groups === 4 && stop.abort()),
    });
    await expect(interrupted).rejects.toThrow(InterruptedError);
    expect(probesBeside()).toHaveLength(1);
    await compress(model, at('probed-resumed'), wanted, {
      onProgress: (it) => void (it.kind === 'phase' && it.phase === 'probe' && fitted.push(String(it.groups))),
    });
    expect(Number(fitted[0])).toBeLessThan(9 + 3);
    expect(differingFiles(at('probed-resumed'), at('probed-native'))).toEqual([]);
    expect(probesBeside()).toEqual([]);
  });

  test('a folder with another result is refused before a probe', async () => {
    let probed = false;
    const run = compress(
      model,
      at('probed-native'),
      { ...wanted, seed: 7 },
      {
        onProgress() {
          probed = true;
        },
      },
    );
    await expect(run).rejects.toThrow(/holds another result \(seed 0, now 7\)/);
    expect(probed).toBe(false);
  });

  test('a folder with other files is refused before a probe', async () => {
    mkdirSync(at('foreign'));
    writeFileSync(at('foreign', 'notes.txt'), '');
    let probed = false;
    const onProgress = (): void => {
      probed = true;
    };
    for (const run of [compress, fitFactors])
      await expect(run(model, at('foreign'), wanted, { onProgress })).rejects.toThrow(OutputNotEmptyError);
    await expect(compress(model, model, wanted, { onProgress, force: true })).rejects.toThrow(OutputInsideInputError);
    expect(probed).toBe(false);
  });

  test('a plan tells of the fits, and with --curve makes them', async () => {
    const even = await plan(model, wanted);
    expect(even.probes).toMatchObject({ finished: false, steps: 6 });
    expect(even.settings.allocation).toBeUndefined();
    expect(describePlan(even)).toMatch(/allocation +is decided after \d+ short fits of 6 steps/);
    const decided = await plan(model, wanted, { curve: true });
    const { curve = [], projections = [] } = decided.settings.allocation ?? {};
    expect(projections).toHaveLength(9);
    expect(curve.at(-1)).toEqual([1, 0]);
    expect(describePlan(decided)).toMatch(/^ +2 +\S+ +\S+ % +\S+ +\S+ % +\S+ +\S+ %$/m);
    await expect(plan(model, { ...wanted, allocate: 'uniform' }, { curve: true })).rejects.toThrow('--curve');
  });
});

test.each<[string, CompressOptions, RegExp]>([
  ['calibrated without a record', { allocate: 'calibrated' }, /^--allocate: .*mobe calibrate/],
  ['a sensitivity that is not measured', { allocate: 'error', sensitivity: 'kl' }, /^--sensitivity: .*--calibration/],
  ['a loss that is no KL', { calibration: 'x', maxLoss: 0.001 }, /^--max-loss: .*--sensitivity kl/],
  ['a loss and a share', { calibration: 'x', sensitivity: 'kl', maxLoss: 0.1, keep: 0.7 }, /^--max-loss: .*--keep/],
  ['a loss and bases', { calibration: 'x', sensitivity: 'kl', maxLoss: 0.1, bases: 3 }, /^--max-loss: .*--bases/],
  ['svd', { method: 'svd', format: 'hf', allocate: 'error' }, /^--allocate: --method svd has no bases/],
])('%s is refused', (_, options, message) => {
  expect(() => resolveSettings(options)).toThrow(message);
});

test('a record decides the defaults', () => {
  expect(resolveSettings({ calibration: 'x' })).toMatchObject({
    allocate: 'calibrated',
    sensitivity: 'local',
    projections: PROJECTIONS,
  });
  expect(resolveSettings({})).toMatchObject({ allocate: 'uniform', projections: ['gate_proj', 'up_proj'] });
});
