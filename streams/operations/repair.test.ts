/** A repair of finished factors: what it improves, what it writes, and what it refuses. */
import { readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { forgetManifest } from '../../fixtures/forget-manifest.js';
import { generateFamily } from '../../fixtures/generate-family.js';
import { type HeldLayer, memoryRecord, randomLayer } from '../../fixtures/memory-record.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH, thoroughBut } from '../../fixtures/thorough.js';
import { writeRecord } from '../../fixtures/write-record.js';
import { floatsOf } from '../../src/checkpoint/codec.js';
import { fingerprint, openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { isFitted, isRepaired } from '../../src/conversion/run-report.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import * as errors from '../../src/errors.js';
import { nullOutput } from '../../src/output/null-output.js';
import type { Progress, RunOptions } from '../run-options.js';
import { compress } from './compress.js';
import { expand } from './expand.js';
import { exportFactors } from './export.js';
import { fitFactors } from './fit.js';
import { type RepairOptions, repair } from './repair.js';
import { verify } from './verify.js';
import { verifyIntegrity } from './verify-manifest.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);
const SIZES = { layers: 2, experts: 6, rows: 16, cols: 40 };
const QUICK: CompressOptions = { bases: 2, steps: 4, threads: 1, shardSize: 20_000 };
const ALL: CompressOptions = { ...QUICK, projections: ['gate_proj', 'up_proj', 'down_proj'] };

const layers = [0, 1].map((layer) =>
  randomLayer(layer, { tokens: 300, width: SIZES.cols, experts: SIZES.experts, expertsPerToken: 2 }),
);
const facts = { sequences: 3, length: 100 };
const recordOf = async (folder: string) =>
  memoryRecord({ ...facts, sourceFingerprint: await fingerprint(await openCheckpoint(folder)) }, layers);

async function run(result: string, out: string, options: Partial<RepairOptions> = {}, hooks: RunOptions = {}) {
  const calibration = await recordOf(at('model'));
  return repair(at('model'), at(result), at(out), { calibration, threads: 1, shardSize: 20_000, ...options }, hooks);
}

beforeAll(async () => {
  await generateFamily(at('model'), 'qwen3_moe', { sizes: SIZES });
  await generateFamily(at('other'), 'qwen3_moe', { sizes: SIZES, seed: 5 });
  await compress(at('model'), at('native'), QUICK);
  await compress(at('model'), at('native-all'), ALL);
  await fitFactors(at('model'), at('factors'), QUICK);
  await fitFactors(at('model'), at('factors-all'), ALL);
});

/** The weights of an expanded checkpoint, or of the model. */
function denseWeights(folder: string): (name: string) => Float32Array {
  const tensors = readFolder(folder);
  return (name) => {
    const tensor = tensors.get(name) as NonNullable<ReturnType<typeof tensors.get>>;
    return floatsOf(tensor.dtype as 'BF16', tensor.bytes);
  };
}

/** Σ_t ‖Σ_e v (expert(h) − expert′(h))‖² over the tokens of a layer, computed in f64. */
function outputError(layer: HeldLayer, before: (name: string) => Float32Array, after: (name: string) => Float32Array) {
  const { cols: d, rows: p, experts } = SIZES;
  const load = (of: (name: string) => Float32Array) =>
    Array.from({ length: experts }, (_, e) => {
      const get = (it: string) => of(`model.layers.${layer.layer}.mlp.experts.${e}.${it}.weight`);
      return { gate: get('gate_proj'), up: get('up_proj'), down: get('down_proj') };
    });
  const [old, now] = [load(before), load(after)];
  const output = ({ gate, up, down }: (typeof old)[number], h: Float32Array): Float64Array => {
    const dot = (W: Float32Array, row: number) => h.reduce((sum, x, j) => sum + x * (W[row * d + j] as number), 0);
    const hidden = Array.from({ length: p }, (_, k) => (dot(gate, k) / (1 + Math.exp(-dot(gate, k)))) * dot(up, k));
    return Float64Array.from({ length: d }, (_, i) =>
      hidden.reduce((sum, x, k) => sum + x * (down[i * p + k] as number), 0),
    );
  };
  let error = 0;
  for (const [place, expert] of layer.experts.entries()) {
    const token = Math.floor(place / layer.expertsPerToken);
    const v = (layer.weights[place] as number) * (layer.scale[token] as number);
    const h = layer.input.subarray(token * d, (token + 1) * d);
    const [a, b] = [output(old[expert] as never, h), output(now[expert] as never, h)];
    error += a.reduce((sum, x, i) => sum + (v * (x - (b[i] as number))) ** 2, 0);
  }
  return error;
}

const untimed = (text: string) => text.replace(/"(seconds|peakRssBytes|sha256)": ("\w+"|[\d.e+-]+)/g, '');
function expectSame(out: string, other: string): void {
  expect(readdirSync(at(out)).sort()).toEqual(readdirSync(at(other)).sort());
  for (const file of readdirSync(at(out))) {
    const [a, b] = [readFileSync(at(out, file)), readFileSync(at(other, file))];
    if (file === 'mobe.json') expect(untimed(a.toString())).toBe(untimed(b.toString()));
    else expect(a.equals(b), file).toBe(true);
  }
}

describe.each(['native', 'native-all'])('%s', (native) => {
  test(
    'outputs come nearer to the model, more so with down_proj, and the result verifies',
    thoroughBut('native')(native),
    async () => {
      const layer = layers[1] as HeldLayer;
      const error = async (result: string): Promise<number> => {
        await expand(at(result), at(`${result}-dense`), { threads: 1 });
        return outputError(layer, denseWeights(at('model')), denseWeights(at(`${result}-dense`)));
      };
      await run(native, `${native}-factors`, { repair: 'factors' });
      const { groups } = await run(native, `${native}-down`);
      const [plain, factors, down] = [
        await error(native),
        await error(`${native}-factors`),
        await error(`${native}-down`),
      ];
      expect(factors).toBeLessThan(0.98 * plain);
      expect(down).toBeLessThan(0.98 * factors);
      expect(groups.find(isFitted)?.metric).toMatchObject({ tokens: [0, expect.any(Number)], unreached: [5] });
      expect(groups.filter(isRepaired)).toHaveLength(native === 'native' ? 2 : 0);
      for (const made of [`${native}-factors`, `${native}-down`, `${native}-down-dense`]) {
        expect((await verifyIntegrity(at(made)))?.problems).toEqual([]);
        expect((await verify(at('model'), at(made), { threads: 1 })).problems).toEqual([]);
      }
      const names = new Set(readFolder(at(native)).keys());
      expect(new Set(readFolder(at(`${native}-down`)).keys())).toEqual(names);
    },
  );
});

test('factor files are repaired to what gives the repaired checkpoint', async () => {
  await run('factors', 'factors-repaired', { repair: 'factors' });
  await run('native', 'native-repaired', { repair: 'factors' });
  await exportFactors(at('model'), at('factors-repaired'), at('exported'), { shardSize: 20_000 });
  await run('factors-all', 'factors-all-repaired');
  await run('native-all', 'native-all-repaired');
  await exportFactors(at('model'), at('factors-all-repaired'), at('exported-all'), { shardSize: 20_000 });
  for (const [exported, repaired] of [
    ['exported', 'native-repaired'],
    ['exported-all', 'native-all-repaired'],
  ] as const) {
    expect(readFolder(at(exported))).toEqual(readFolder(at(repaired)));
    expect((await verify(at('model'), at(exported), { threads: 1 })).problems).toEqual([]);
  }
});

test('an interrupted repair goes on with the next layer, and gives the same bytes', async () => {
  for (const [result, out] of [
    ['native', 'stopped'],
    ['factors-all', 'stopped-factors'],
  ] as const) {
    await run(result, `${out}-whole`);
    const controller = new AbortController();
    const seen: number[] = [];
    let finished = (): void => {};
    const firstLayer = new Promise<void>((resolve) => {
      finished = resolve;
    });
    const onProgress = (it: Progress): void => {
      if (it.kind === 'group' && it.report.projection === 'down_proj') finished();
    };
    const record = await recordOf(at('model'));
    const calibration: typeof record = {
      ...record,
      async layer(number) {
        if (number === 1) await firstLayer.then(() => controller.abort());
        return record.layer(number);
      },
    };
    const stopped = run(result, out, { calibration }, { onProgress, signal: controller.signal });
    await expect(stopped).rejects.toThrow(errors.InterruptedError);
    await run(result, out, {}, { onProgress: (it) => it.kind === 'group' && seen.push(it.report.layer) });
    expect([...new Set(seen)]).toEqual([1]);
    expectSame(out, `${out}-whole`);
    expect((await run(result, out)).already).toBe(true);
  }
});

test('a fused down_proj is rewritten in its place', async () => {
  await generateFamily(at('fused'), 'qwen3_moe', { sizes: SIZES, fused: true });
  await compress(at('fused'), at('fused-native'), QUICK);
  const calibration = await recordOf(at('fused'));
  await repair(at('fused'), at('fused-native'), at('fused-repaired'), { calibration, threads: 1 });
  expect((await verify(at('fused'), at('fused-repaired'), { threads: 1 })).problems).toEqual([]);
  const down = 'model.layers.1.mlp.experts.down_proj';
  const [before, after] = [readFolder(at('fused-native')), readFolder(at('fused-repaired'))];
  expect(after.get(down)?.shape).toEqual(before.get(down)?.shape);
  expect(after.get(down)?.bytes).not.toEqual(before.get(down)?.bytes);
});

test('the record of the run tells of the repair and its calibration; damage of a repaired down_proj is found', async () => {
  await run('native', 'damaged');
  const { settings } = JSON.parse(readFileSync(at('damaged', 'mobe.json'), 'utf8'));
  expect(settings.repaired).toMatchObject({ what: 'factors+down', calibration: { tokens: 300 } });
  const name = 'model.layers.1.mlp.experts.3.down_proj.weight';
  const tensor = (await openCheckpoint(at('damaged'))).tensors.get(name) as { file: string; start: number };
  const shard = readFileSync(tensor.file);
  shard.writeUInt16LE(0x4000, tensor.start); // 2 in bf16
  writeFileSync(tensor.file, shard);
  forgetManifest(at('damaged'));
  expect((await verify(at('model'), at('damaged'), { threads: 1 })).problems).toEqual([
    expect.stringMatching(/^layer 1 down_proj: the relative error is/),
  ]);
});

describe('refuses', () => {
  test.each([
    ['a result of another model', 'native', errors.OtherResultError],
    ['factor files of another model', 'factors', errors.FactorMismatchError],
    ['a dense checkpoint', 'other', errors.UnknownModelError],
  ])('%s', async (_, result, error) => {
    const calibration = await recordOf(at('other'));
    await expect(repair(at('other'), at(result), at('none'), { calibration })).rejects.toThrow(error);
  });

  test('a folder that is no record, and a record of another model', async () => {
    await expect(run('native', 'none', { calibration: at('model') })).rejects.toThrow(errors.NotARecordError);
    const calibration = await recordOf(at('other'));
    await expect(run('native', 'none', { calibration })).rejects.toThrow(errors.OtherRecordError);
  });

  test('a record of other shapes', async () => {
    const wrong = randomLayer(0, { tokens: 9, width: 7, experts: 6, expertsPerToken: 2 });
    const sourceFingerprint = await fingerprint(await openCheckpoint(at('model')));
    const calibration = memoryRecord({ sourceFingerprint, sequences: 1, length: 9 }, [wrong]);
    await expect(run('native', 'none', { calibration })).rejects.toThrow(errors.RecordShapeError);
  });

  test('down_proj in factor files that have none, and factors of another method', async () => {
    await expect(run('factors', 'none')).rejects.toThrow(/no factors of down_proj in layer 0-1.*--repair factors/);
    await fitFactors(at('model'), at('svd'), { method: 'svd', threads: 1 });
    await expect(run('svd', 'none')).rejects.toThrow(/factors of truncated SVD/i);
  });
});

describe('compress with --repair factors+down', () => {
  beforeAll(async () => {
    const sourceFingerprint = await fingerprint(await openCheckpoint(at('model')));
    await writeRecord(at('record'), { ...facts, sourceFingerprint }, layers);
  });
  const calibration = at('record');

  describe.each([
    ['two projections', QUICK, 'mobe'],
    ['all projections', ALL, 'mobe'],
    ['standard weights', QUICK, 'hf'],
  ] as const)('%s', (name, sizes, format) => {
    test(
      'gives what a repair of finished factors gives, interrupted or not',
      thoroughBut('two projections')(name),
      async () => {
        const chosen = { ...sizes, format, calibration, metric: 'none', allocate: 'uniform' } satisfies CompressOptions;
        const options = { ...chosen, projections: sizes.projections ?? ['gate_proj', 'up_proj'] } as CompressOptions;
        await compress(at('model'), at(name, 'plain'), { ...options, format: 'mobe', repair: 'none' });
        await repair(at('model'), at(name, 'plain'), at(name, 'repaired'), {
          calibration,
          threads: 1,
          shardSize: 20_000,
        });
        if (format === 'hf')
          await expand(at(name, 'repaired'), at(name, 'expanded'), { threads: 1, shardSize: 20_000 });
        const [out, stopped] = [at(name, 'together'), at(name, 'stopped')];
        await compress(at('model'), out, { ...options, repair: 'factors+down' });
        expect(readFolder(out)).toEqual(readFolder(at(name, format === 'hf' ? 'expanded' : 'repaired')));
        expect((await verify(at('model'), out, { threads: 1 })).problems).toEqual([]);

        const controller = new AbortController();
        let steps = 0;
        const onProgress = ({ kind }: Progress): void => {
          if (kind === 'step' && ++steps === 3) controller.abort();
        };
        const running = compress(
          at('model'),
          stopped,
          { ...options, repair: 'factors+down' },
          { onProgress, signal: controller.signal },
        );
        await expect(running).rejects.toMatchObject({ name: 'InterruptedError', kept: stopped });
        await compress(at('model'), stopped, { ...options, repair: 'factors+down' });
        expectSame(join(name, 'stopped'), join(name, 'together'));
      },
    );
  });

  test('fit writes repaired factor files', THOROUGH, async () => {
    const options: CompressOptions = { ...ALL, calibration, metric: 'none', allocate: 'uniform' };
    await fitFactors(at('model'), at('fitted'), { ...options, repair: 'factors+down' });
    await fitFactors(at('model'), at('plain-fit'), options);
    await repair(at('model'), at('plain-fit'), at('plain-fit-repaired'), { calibration, threads: 1 });
    expect(readFolder(at('fitted'))).toEqual(readFolder(at('plain-fit-repaired')));
    const two: CompressOptions = { ...options, projections: ['gate_proj', 'up_proj'], repair: 'factors+down' };
    await expect(fitFactors(at('model'), at('none'), two)).rejects.toThrow(/no factors of down_proj/);
  });

  test('is refused with --max-error, and where there is no folder', async () => {
    const options: CompressOptions = {
      ...QUICK,
      calibration,
      repair: 'factors+down',
      allocate: 'uniform',
      format: 'hf',
    };
    await expect(compress(at('model'), at('none'), { ...options, maxError: 0.4 })).rejects.toThrow(/--max-error/);
    await expect(compress(at('model'), nullOutput(), options)).rejects.toThrow(/no folder for them/);
  });
});
