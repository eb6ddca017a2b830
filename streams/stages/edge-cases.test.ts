import { copyFileSync, cpSync, existsSync, readdirSync, readFileSync, truncateSync } from 'node:fs';
import { basename, join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import { differingFiles } from '../../fixtures/compare-weights.js';
import { availableEngines } from '../../fixtures/engines.js';
import { type GeneratedModel, generateCheckpoint } from '../../fixtures/generate.js';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { thoroughBut } from '../../fixtures/thorough.js';
import type { TensorInfo } from '../../src/checkpoint/header.js';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { isFitted } from '../../src/conversion/run-report.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import type { EngineChoice } from '../../src/engine/choose-engine.js';
import type { EngineName } from '../../src/engine/create-engine.js';
import * as errors from '../../src/errors.js';
import { PARTIAL_FOLDER } from '../../src/output/output-folder.js';
import { compress } from '../operations/compress.js';
import { expand } from '../operations/expand.js';
import { exportFactors } from '../operations/export.js';
import { fitFactors } from '../operations/fit.js';
import { verify } from '../operations/verify.js';
import type { Progress } from '../run-options.js';

const root = temporaryFolder();
const at = (...path: string[]) => join(root, ...path);

describe('every shape converts and verifies, native and hf:', () => {
  const cases: Array<[string, GeneratedModel, CompressOptions]> = [
    ['experts no multiple of bases', { layers: 2, experts: 7, rows: 6, cols: 32 }, { bases: 3 }],
    ['rank below the rows', { layers: 1, experts: 6, rows: 8, cols: 32 }, { bases: 5, rank: 3 }],
    ['one expert', { layers: 1, experts: 1, rows: 8, cols: 64 }, { bases: 1, rank: 4 }],
    ['one basis', { layers: 1, experts: 4, rows: 6, cols: 32 }, { bases: 1 }],
    ['f32 in, bf16 out', { layers: 1, experts: 4, rows: 6, cols: 32, dtype: 'F32' }, { bases: 1, dtype: 'bfloat16' }],
    ['f16 in and out', { layers: 1, experts: 4, rows: 6, cols: 32, dtype: 'F16' }, { bases: 2, activation: 'tanh' }],
    ['bf16 in, f32 out', { layers: 1, experts: 4, rows: 6, cols: 32 }, { bases: 2, dtype: 'float32' }],
    ['many small shards', { layers: 3, experts: 5, rows: 6, cols: 32, shardBytes: 700 }, { bases: 2, shardSize: 900 }],
    ['no layer at all', { layers: 2, experts: 4, rows: 6, cols: 32 }, { layers: [] }],
    ['the adam solver', { layers: 1, experts: 5, rows: 6, cols: 32 }, { bases: 2, solver: 'adam', steps: 30 }],
    ['batches of two experts', { layers: 1, experts: 5, rows: 6, cols: 32 }, { bases: 2, batchExperts: 2 }],
  ];
  const cost = thoroughBut('many small shards', 'no layer at all');
  for (const [name, model, options] of cases)
    test(name, cost(name), async () => {
      const folder = at('shapes', name);
      await generateCheckpoint(join(folder, 'model'), model);
      for (const format of ['mobe', 'hf'] as const) {
        const settings = { steps: 15, ...options, format };
        // f32 factors of a bf16 source are larger.
        const result = await compress(join(folder, 'model'), join(folder, format), settings, LARGER);
        for (const { relativeError } of result.groups.filter(isFitted)) expect(relativeError).toBeLessThan(1);
        expect((await verify(join(folder, 'model'), join(folder, format))).problems).toEqual([]);
      }
      if (options.layers?.length === 0) return;
      await expand(
        join(folder, 'mobe'),
        join(folder, 'expanded'),
        options.shardSize ? { shardSize: options.shardSize } : {},
      );
      const shards = (of: string) => readdirSync(join(folder, of)).filter((file) => file.endsWith('.safetensors'));
      expect(shards('expanded')).toEqual(shards('hf'));
      for (const file of shards('hf'))
        expect(readFileSync(join(folder, 'expanded', file)).equals(readFileSync(join(folder, 'hf', file)))).toBe(true);
    });
});

describe('every engine of this machine converts, and the CPU verifies:', async () => {
  const engines = await availableEngines();
  const names = engines.map(({ name }) => name as EngineName);
  test.each(names)('%s', async (engine) => {
    const folder = at('engines', engine);
    await generateCheckpoint(join(folder, 'model'), { layers: 1, experts: 3, rows: 6, cols: 32 });
    const options: CompressOptions = { engine, bases: 1, steps: 2, projections: ['up_proj'] };
    const result = await compress(join(folder, 'model'), join(folder, 'mobe'), options);
    expect(result).toMatchObject({ engine: { name: engine }, settings: { engine } });
    expect(result.groups.filter(isFitted)[0]?.relativeError).toBeLessThan(1);
    expect(readFileSync(join(folder, 'mobe', 'README.md'), 'utf8')).toContain(`"engine": "${engine}"`);
    const again = await compress(join(folder, 'model'), join(folder, 'mobe'), options);
    expect(again.already).toBe(true);

    await expand(join(folder, 'mobe'), join(folder, 'expanded'), { engine });
    for (const by of ['onnx-cpu', engine] as const)
      expect((await verify(join(folder, 'model'), join(folder, 'mobe'), { engine: by })).problems).toEqual([]);
    expect((await verify(join(folder, 'model'), join(folder, 'expanded'))).problems).toEqual([]);
  });

  test('auto is settled on one of them before anything is recorded', async () => {
    const folder = at('engines', 'auto');
    await generateCheckpoint(join(folder, 'model'), { layers: 1, experts: 4, rows: 6, cols: 32 });
    const run = (engine: EngineChoice) =>
      compress(join(folder, 'model'), join(folder, 'out'), { engine, bases: 1, steps: 3 });
    const { settings, engine } = await run('auto');
    expect(engine?.name).toBe(settings.engine);
    expect(engines).toContainEqual(expect.objectContaining({ ...engine }));
    expect((await run(settings.engine as EngineName)).already).toBe(true);
  });

  test('what another engine rebuilt says so', async () => {
    const folder = at('engines', 'rebuilt');
    await generateCheckpoint(join(folder, 'model'), { layers: 1, experts: 2, rows: 4, cols: 32 });
    await fitFactors(join(folder, 'model'), join(folder, 'factors'), { bases: 1, steps: 1, projections: ['up_proj'] });
    for (const engine of names) {
      const out = join(folder, engine);
      const { settings } = await exportFactors(join(folder, 'model'), join(folder, 'factors'), out, {
        format: 'hf',
        engine,
      });
      expect(settings.rebuiltOn).toBe(engine === 'onnx-cpu' ? undefined : engine);
    }
  });
});

describe('bad weights are named when their group comes, and nothing that looks whole is left:', () => {
  const tensor = 'model.layers.1.mlp.experts.2.up_proj.weight';
  const cases: Array<
    [string, new (...args: never[]) => Error, string, (name: string, count: number) => Float32Array | undefined]
  > = [
    [
      'NaN',
      errors.NonFiniteWeightError,
      tensor,
      (name, count) => (name === tensor ? new Float32Array(count).fill(Number.NaN, 3, 4) : undefined),
    ],
    [
      'infinity',
      errors.NonFiniteWeightError,
      tensor,
      (name, count) => (name === tensor ? new Float32Array(count).fill(Number.POSITIVE_INFINITY) : undefined),
    ],
    [
      'all zero',
      errors.DegenerateGroupError,
      'layer 1 gate_proj',
      (name, count) => (/layers.1.*gate_proj/.test(name) ? new Float32Array(count) : undefined),
    ],
    [
      'all the same',
      errors.DegenerateGroupError,
      'layer 0 up_proj',
      (name, count) => (/layers.0.*up_proj/.test(name) ? new Float32Array(count).fill(0.3) : undefined),
    ],
  ];
  test.each(cases)('%s', async (name, error, names, values) => {
    const folder = at('bad', name);
    await generateCheckpoint(join(folder, 'model'), { layers: 2, experts: 4, rows: 6, cols: 32, values });
    const finished: Progress[] = [];
    const run = compress(
      join(folder, 'model'),
      join(folder, 'out'),
      { bases: 2, steps: 5, threads: 1 },
      { onProgress: (it) => it.kind === 'group' && finished.push(it) },
    );
    const failure = await run.catch((reason: Error) => reason);
    expect(failure).toBeInstanceOf(error);
    expect(String(failure)).toContain(names);
    // Groups fitted before are kept. If there are none, nothing is kept.
    expect((failure as errors.MobeError).kept).toBe(finished.length ? join(folder, 'out') : undefined);
    const left = existsSync(join(folder, 'out')) ? readdirSync(join(folder, 'out')) : [];
    expect(left).toEqual(finished.length ? ['.mobe-partial'] : []);
  });

  test('when the shard is mended, the groups that were fitted before are not fitted again', async () => {
    const folder = at('bad', 'mended');
    const bad = 'model.layers.2.mlp.experts.2.up_proj.weight';
    const make = (name: string, nan: boolean) =>
      generateCheckpoint(join(folder, name), {
        ...{ layers: 3, experts: 4, rows: 6, cols: 32, shardBytes: 6000 },
        values: (tensor, count) =>
          nan && tensor === bad
            ? Float32Array.from({ length: count }, (_, i) => (i === 7 ? Number.NaN : 0.02 * Math.sin(i * i)))
            : tensor === bad
              ? Float32Array.from({ length: count }, (_, i) => 0.02 * Math.sin(i * i))
              : undefined,
      });
    await make('model', true);
    await make('whole', false);
    const options = { bases: 2, steps: 5, threads: 1 } as const;
    const [source, out] = [join(folder, 'model'), join(folder, 'out')];
    const before: string[] = [];
    const onProgress = (to: string[]) => (it: Progress) => {
      if (it.kind === 'group') to.push(`${it.report.layer} ${it.report.projection}`);
    };
    await expect(compress(source, out, options, { onProgress: onProgress(before) })).rejects.toThrow(bad);
    expect(before.length).toBeGreaterThan(0);

    const { file } = (await openCheckpoint(source)).tensors.get(bad) as TensorInfo;
    copyFileSync(join(folder, 'whole', basename(file)), file);
    const after: string[] = [];
    await compress(source, out, options, { onProgress: onProgress(after) });
    // Groups with experts in the mended shard are fitted again.
    const again = after.filter((it) => before.includes(it));
    expect(again.filter((it) => !it.startsWith('2 '))).toEqual([]);
    expect(before.length).toBeGreaterThan(again.length);
    expect(new Set([...before, ...after]).size).toBe(6);
    await compress(join(folder, 'whole'), join(folder, 'clean'), options);
    expect(differingFiles(out, join(folder, 'clean'))).toEqual([]);
  });

  test('a result too large for f16 is named, not written', async () => {
    const folder = at('bad', 'overflow');
    const values = (name: string, count: number) =>
      /experts.*gate/.test(name) ? Float32Array.from({ length: count }, (_, i) => 1e6 * Math.sin(i * i)) : undefined;
    await generateCheckpoint(join(folder, 'model'), { layers: 1, experts: 4, rows: 6, cols: 32, dtype: 'F32', values });
    const run = compress(join(folder, 'model'), join(folder, 'out'), {
      bases: 2,
      steps: 5,
      dtype: 'float16',
      format: 'hf',
    });
    await expect(run).rejects.toThrow(errors.OverflowError);
    expect(existsSync(join(folder, 'out'))).toBe(false);
  });
});

test('the output may not lie in the source', async () => {
  await expect(compress(TINY_MODEL, join(TINY_MODEL, 'out'))).rejects.toThrow(errors.OutputInsideInputError);
});

test('a run that is aborted leaves nothing that looks whole, and says where it is kept', async () => {
  const controller = new AbortController();
  const onProgress = (progress: Progress) => {
    if (progress.kind === 'step' && progress.step > 2) controller.abort();
  };
  const run = compress(TINY_MODEL, at('aborted'), { steps: 5000 }, { onProgress, signal: controller.signal });
  await expect(run).rejects.toThrow(errors.InterruptedError);
  await expect(run).rejects.toMatchObject({ kept: at('aborted') });
  expect(readdirSync(at('aborted'))).toEqual([PARTIAL_FOLDER]);
});

test('a source that is cut short during the run stops it at once, naming the file, and leaves nothing', async () => {
  cpSync(TINY_MODEL, at('shrinking'), { recursive: true });
  const shard = at('shrinking', 'model-00003-of-00003.safetensors');
  const onProgress = (progress: Progress) => {
    if (progress.kind === 'phase' && progress.phase === 'convert') truncateSync(shard, 100_000);
  };
  const started = performance.now();
  const run = compress(at('shrinking'), at('shrunk'), { steps: 100_000 }, { onProgress });
  await expect(run).rejects.toThrow(errors.SourceChangedError);
  await expect(run).rejects.toThrow('model-00003-of-00003.safetensors');
  expect(performance.now() - started).toBeLessThan(20_000); // the fit beside it would take minutes
  expect(existsSync(at('shrunk'))).toBe(false);
});

test('an aborted verification says so', async () => {
  await compress(TINY_MODEL, at('to-verify'), { steps: 2, layers: [0] });
  const run = verify(TINY_MODEL, at('to-verify'), { signal: AbortSignal.abort() });
  await expect(run).rejects.toThrow(errors.InterruptedError);
});
