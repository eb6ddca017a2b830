/** `--method quantise`: experts become packed integers, as compressed-tensors stores them. */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { beforeAll, describe, expect, test } from 'vitest';
import { LARGER } from '../../fixtures/allow-larger.js';
import { differingFiles, differingWeights, weightOf } from '../../fixtures/compare-weights.js';
import { dequantiseInt4, readFloats } from '../../fixtures/dequantise.js';
import { forgetManifest } from '../../fixtures/forget-manifest.js';
import { generateFamily, type KnownWeight } from '../../fixtures/generate-family.js';
import { randomLayer } from '../../fixtures/memory-record.js';
import { EVALUATION_TEXT, TINY_MODEL } from '../../fixtures/paths.js';
import type { StoredTensor } from '../../fixtures/quantised-storage.js';
import { readFolder } from '../../fixtures/read-folder.js';
import { startService } from '../../fixtures/services.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { THOROUGH } from '../../fixtures/thorough.js';
import { writeRecord } from '../../fixtures/write-record.js';
import { fingerprint, openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { readMatrix } from '../../src/checkpoint/stored-matrix.js';
import { planNotes } from '../../src/cli/plan-notes.js';
import { type FittedGroupReport, isFitted } from '../../src/conversion/run-report.js';
import type { CompressOptions } from '../../src/conversion/settings.js';
import { OptionError } from '../../src/errors.js';
import { quantiseMatrix } from '../../src/methods/quantise/quantise-matrix.js';
import { detectModel } from '../../src/models/detect.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { compress } from './compress.js';
import { type Comparison, evaluate, type ModelScore } from './evaluate.js';
import { fitFactors } from './fit.js';
import { plan } from './plan.js';
import { verify } from './verify.js';

const root = temporaryFolder();
const at = (...path: string[]): string => join(root, ...path);
const SIZES = { layers: 2, experts: 4, rows: 64, cols: 128 };
const OPTIONS = { method: 'quantise', threads: 1 } as const satisfies CompressOptions;

type Folder = ReturnType<typeof readFolder>;
type Source = Awaited<ReturnType<typeof generateFamily>>;
const bytesOf = (folder: Folder, name: string): Uint8Array => Uint8Array.from((folder.get(name) as StoredTensor).bytes);
const configOf = (folder: string) => JSON.parse(readFileSync(at(folder, 'config.json'), 'utf8'));
const isExpert = ({ kind }: KnownWeight): boolean => kind === 'expert';
const fitted = ({ groups }: RunResult): FittedGroupReport[] => groups.filter(isFitted);

/** Decodes a packed weight without any code of src/. */
function decoded(folder: Folder, { name, shape }: KnownWeight, width: number, group: number): Float32Array {
  const cols = shape[1] as number;
  const scales = readFloats('BF16', bytesOf(folder, `${name}_scale`));
  const packed = bytesOf(folder, `${name}_packed`);
  if (width === 4) return dequantiseInt4(packed, scales, cols, group);
  return Float32Array.from(packed, (code, i) => {
    const [row, col] = [Math.floor(i / cols), i % cols];
    return (code - 128) * (scales[row * Math.ceil(cols / group) + Math.floor(col / group)] as number);
  });
}

const run = (out: string, options: CompressOptions = {}, more: RunOptions = {}, model = 'model'): Promise<RunResult> =>
  compress(at(model), at(out), { ...OPTIONS, ...options }, more);

let source: Source;
beforeAll(async () => {
  source = await generateFamily(at('model'), 'qwen3_moe', { sizes: SIZES });
  const layers = [0, 1].map((layer) =>
    randomLayer(layer, { tokens: 300, width: SIZES.cols, experts: SIZES.experts, expertsPerToken: 2 }),
  );
  const sourceFingerprint = await fingerprint(await openCheckpoint(at('model')));
  await writeRecord(at('record'), { sequences: 3, length: 100, sourceFingerprint }, layers);
});

describe.each([
  [4, 64],
  [8, 64],
] as const)('%i bits', (width, group) => {
  test('every expert is rounded to the nearest, and the rest has the bytes of the source', async () => {
    const result = await run(`rtn${width}`, { width });
    const written = readFolder(at(`rtn${width}`));
    expect(result.groups).toHaveLength(6);
    const experts = [...source.weights.values()].filter(isExpert);
    expect(experts).toHaveLength(2 * 4 * 3);
    for (const weight of experts) {
      const [rows, cols] = weight.shape as [number, number];
      const { name } = weight;
      expect(written.get(name)).toBeUndefined();
      expect(written.get(`${name}_packed`)).toMatchObject({ dtype: 'I32', shape: [rows, (cols * width) / 32] });
      expect(written.get(`${name}_scale`)).toMatchObject({ dtype: 'BF16', shape: [rows, cols / group] });
      expect(written.get(`${name}_shape`)).toMatchObject({ dtype: 'I64', shape: [2] });
      const shape = new BigInt64Array(bytesOf(written, `${name}_shape`).slice().buffer);
      expect([...shape]).toEqual([BigInt(rows), BigInt(cols)]);
      // The source is bf16, and rounding starts from it but for the last bit of f32.
      const expected = quantiseMatrix(weight.values, { rows, cols }, { width, scaleGroup: group });
      const found = decoded(written, weight, width, group);
      const step = Math.max(...weight.values.map(Math.abs)) / 2 ** (width - 1);
      const others = found.filter((value, i) => Math.abs(value - (expected[i] as number)) > 1e-6 * step).length;
      expect(others, name).toBeLessThan(0.002 * found.length);
    }
    expect(differingWeights(written, source, (it) => !isExpert(it))).toEqual([]);
    const limit = width === 4 ? 0.12 : 0.008;
    for (const { relativeError } of fitted(result)) expect(relativeError).toBeLessThan(limit);
    expect((await verify(at('model'), at(`rtn${width}`), { threads: 1 })).problems).toEqual([]);
  });

  test('the reader of checkpoints finds the same numbers', async () => {
    const checkpoint = await openCheckpoint(at(`rtn${width}`));
    const [layer] = detectModel(checkpoint).layers;
    const matrix = layer?.experts.down_proj[3] as NonNullable<typeof layer>['experts']['down_proj'][0];
    const weight = source.weights.get(matrix.name) as KnownWeight;
    const found = decoded(readFolder(at(`rtn${width}`)), weight, width, group);
    expect(matrix.encoding).toMatchObject({ kind: 'packed', bits: width, groupSize: group, zeroRows: 0 });
    await readMatrix(checkpoint.files, matrix); // compares the stored shape
    await checkpoint.files.close();
    await compress(at(`rtn${width}`), at(`plain${width}`), { layers: [], format: 'hf', dtype: 'float32' }, LARGER);
    expect(weightOf(readFolder(at(`plain${width}`)), weight)).toEqual(found);
  });

  test('the config says so, and quantises nothing but experts', () => {
    const { quantization_config: entry, ...rest } = configOf(`rtn${width}`);
    expect(rest).toEqual(source.config);
    expect(entry).toMatchObject({
      quant_method: 'compressed-tensors',
      format: 'pack-quantized',
      quantization_status: 'compressed',
      config_groups: {
        group_0: {
          targets: ['Linear'],
          weights: { num_bits: width, type: 'int', symmetric: true, strategy: 'group', group_size: group },
          input_activations: null,
        },
      },
    });
  });
});

/** Whether compressed-tensors leaves a module out. */
const isIgnored = ({ quantization_config: { ignore } }: { quantization_config: { ignore: string[] } }, name: string) =>
  ignore.some((it) => (it.startsWith('re:') ? new RegExp(`^(?:${it.slice(3)})`).test(name) : it === name));

test('modules that stay plain are ignored, under any beginning of their names', async () => {
  await run('part', { layers: [1] });
  const config = configOf('part');
  for (const [name, expected] of [
    ['lm_head', true],
    ['model.layers.1.self_attn.q_proj', true],
    ['model.layers.1.mlp.gate', true],
    ['model.layers.1.mlp.shared_expert.up_proj', true],
    ['model.layers.1.mlp.shared_experts.up_proj', true],
    ['model.layers.1.mlp.up_proj', true],
    ['model.layers.0.mlp.experts.3.up_proj', true],
    ['model.language_model.layers.0.mlp.experts.3.up_proj', true],
    ['model.layers.1.mlp.experts', false],
    ['model.layers.1.mlp.experts.3.up_proj', false],
    ['language_model.model.layers.1.mlp.experts.0.down_proj', false],
    ['model.layers.10.mlp.experts.0.down_proj', false],
  ] as const)
    expect(isIgnored(config, name), name).toBe(expected);
  const notes = planNotes(await plan(at('model'), { ...OPTIONS, layers: [1] }));
  expect(notes).toEqual([expect.stringMatching(/experts of layer 0 stay plain.*transformers 5 does not load/)]);
  expect(
    differingWeights(readFolder(at('part')), source, ({ name }) => !name.includes('layers.1.mlp.experts')),
  ).toEqual([]);
  expect((await verify(at('model'), at('part'), { threads: 1 })).problems).toEqual([]);
});

test('a damaged code is found, with a manifest and without', async () => {
  await run('damaged');
  const { file, start } = (await openCheckpoint(at('damaged'))).tensors.get(
    'model.layers.1.mlp.experts.2.down_proj.weight_packed',
  ) as { file: string; start: number };
  const bytes = readFileSync(file);
  bytes[start + 5] = (bytes[start + 5] as number) ^ 0x88;
  writeFileSync(file, bytes);
  expect((await verify(at('model'), at('damaged'), { threads: 1 })).problems).not.toEqual([]);
  forgetManifest(at('damaged'));
  const { problems } = await verify(at('model'), at('damaged'), { threads: 1 });
  expect(problems).toEqual([expect.stringMatching(/layer 1 down_proj: the relative error is/)]);
});

describe('with a calibration record', () => {
  let result: RunResult;
  beforeAll(async () => {
    result = await run('gptq', { calibration: at('record') });
  });

  test('rounding minds what the record weighs', async () => {
    const plain = await run('weighed', { calibration: at('record'), metric: 'none' });
    expect(readFolder(at('weighed'))).toEqual(readFolder(at('rtn4')));
    for (const [i, { metric, relativeError, projection }] of fitted(result).entries()) {
      // Random inputs are hardly correlated. Hidden activations are.
      expect(metric?.relativeError).toBeLessThan((projection === 'down_proj' ? 0.95 : 1) * relativeError);
      expect(relativeError).toBeGreaterThan(fitted(plain)[i]?.relativeError as number);
    }
    expect(result.settings).toMatchObject({ method: 'quantise', width: 4, metric: { form: 'full' }, repair: 'none' });
    expect((await verify(at('model'), at('gptq'), { threads: 1 })).problems).toEqual([]);
  });

  test('a metric of low rank is minded too', THOROUGH, async () => {
    const low = await run('low', { calibration: at('record'), metric: 'low-rank' });
    for (const { metric, relativeError } of fitted(low)) expect(metric?.relativeError).toBeLessThan(relativeError);
    expect(differingFiles(at('low'), at('gptq'))).not.toEqual([]);
  });

  test('an interrupted run goes on, and gives the same bytes', async () => {
    const controller = new AbortController();
    const options = { calibration: at('record') };
    const stopped = run('stopped', options, {
      signal: controller.signal,
      onProgress: ({ kind }) => kind === 'group' && controller.abort(),
    });
    await expect(stopped).rejects.toMatchObject({ name: 'InterruptedError', kept: at('stopped') });
    expect(existsSync(at('stopped', 'config.json'))).toBe(false);
    const later: string[] = [];
    await run('stopped', options, { onProgress: ({ kind }) => later.push(kind) });
    expect(later.filter((kind) => kind === 'group').length).toBeLessThan(6);
    expect(differingFiles(at('stopped'), at('gptq'))).toEqual([]);
  });

  test('workers give the same bytes', THOROUGH, async () => {
    const service = await startService(['worker', '--threads', '1']);
    await run('remote', { calibration: at('record') }, { workers: [service.url] });
    await service.stop();
    expect(differingFiles(at('remote'), at('gptq'))).toEqual([]);
  });
});

test('a source that is quantised becomes plain but for the experts', async () => {
  const sizes = { layers: 2, experts: 4, rows: 64, cols: 64 };
  const fp8 = await generateFamily(at('fp8'), 'deepseek_v3', { quantised: 'fp8', sizes });
  await run('of-fp8', {}, LARGER, 'fp8');
  const written = readFolder(at('of-fp8'));
  expect(differingWeights(written, fp8, (it) => !isExpert(it))).toEqual([]);
  expect([...written.values()].some(({ dtype }) => dtype.startsWith('F8'))).toBe(false);
  expect(configOf('of-fp8').quantization_config.quant_method).toBe('compressed-tensors');
  expect((await verify(at('fp8'), at('of-fp8'), { threads: 1 })).problems).toEqual([]);
  // Every expert was FP8 in the source, so that the rest grows more than the experts shrink.
  await expect(run('larger', { width: 8 }, {}, 'fp8')).rejects.toThrow(
    /decoded. Give --width 4. Or give --allow-larger/,
  );
});

test('the result runs here: 8 bits predict nearly what the source does', async () => {
  await compress(TINY_MODEL, at('tiny'), { ...OPTIONS, width: 8 });
  const text = readFileSync(EVALUATION_TEXT, 'utf8').slice(0, 600);
  const { models } = await evaluate([at('tiny')], text, { against: TINY_MODEL, threads: 1 });
  const { divergence, agreement } = (models.at(-1) as ModelScore).comparison as Comparison;
  expect(divergence).toBeGreaterThan(0);
  expect(divergence).toBeLessThan(5e-4);
  expect(agreement).toBeGreaterThan(0.98);
});

describe('what cannot be loaded or makes no sense is refused:', () => {
  test.each<[string, CompressOptions, RegExp]>([
    ['a native format', { format: 'mobe' }, /^--format: no native form .* Use --format hf/],
    ['some of the projections', { projections: ['up_proj'] }, /^--projections: .*gate_proj.* would stay as it is/],
    ['the quantisation of the source', { keepQuantized: true }, /^--keep-quantized: a config describes one/],
    ['a limit to errors', { maxError: 0.1 }, /^--max-error: /],
    ['rows that are no multiple', { scaleGroup: 128 }, /^--scale-group: .* have 64. Use --scale-group 64/],
    ['a dtype of factors', { dtype: 'int8' }, /^--dtype: it is for factors. Give --width/],
    ['bases', { bases: 3 }, /^--bases: --method quantise has no use for it; what it takes is --width, --scale-group/],
    ['a size', { keep: 0.5 }, /^--keep: /],
    ['a rank', { rank: 5 }, /^--rank: /],
    ['a repair', { repair: 'factors', calibration: 'x' }, /^--repair: /],
    ['an allocation', { allocate: 'error' }, /^--allocate: --method quantise has no bases/],
    ['a width of another method', { method: 'mobe', width: 4 }, /^--width: --method mobe has no use for it/],
    ['a width that is not loaded', { width: 3 as 4 }, /^--width: give 4 or 8/],
  ])('%s', async (_, options, says) => {
    const refused = plan(at('model'), { ...OPTIONS, ...options });
    await expect(refused).rejects.toThrow(OptionError);
    await expect(refused).rejects.toThrow(says);
  });

  test('factor files', async () => {
    await expect(fitFactors(at('model'), at('factors'), OPTIONS)).rejects.toThrow(
      /^--method: quantise makes no factors/,
    );
  });

  test('experts in one tensor, and rows that no group fits', async () => {
    await generateFamily(at('fused'), 'qwen3_moe', { sizes: SIZES, fused: true });
    await expect(plan(at('fused'), OPTIONS)).rejects.toThrow(
      /^--method: quantise writes a tensor for each .*gate_up_proj/,
    );
    await generateFamily(at('narrow'), 'qwen3_moe', { sizes: { ...SIZES, rows: 40 } });
    await expect(plan(at('narrow'), OPTIONS)).rejects.toThrow(
      /^--method: quantise: rows .* 64 columns.*down_proj.* 40/,
    );
  });
});
