import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type FamilyOptions, generateFamily } from '../../fixtures/generate-family.js';
import { EXPERT_FORMATS } from '../../fixtures/quantised-formats.js';
import type { Quantisation, StoredTensor } from '../../fixtures/quantised-storage.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import * as errors from '../errors.js';
import { expertsOf } from '../models/expert-names.js';
import { LocalFiles } from '../sources/files.js';
import type { TensorInfo } from './header.js';
import { openCheckpoint } from './open-checkpoint.js';
import { attachedTo, isQuantised, matrixName, quantisationConfig, quantisedMatrix } from './quantisation.js';
import { decodeMatrix, openMatrix, readMatrix } from './stored-matrix.js';

const root = temporaryFolder();
let made = 0;
const SIZES = { layers: 2, experts: 2, rows: 16, cols: 40 };

async function open(quantised: Quantisation, options: FamilyOptions = {}) {
  const folder = join(root, String(made++));
  const family = quantised === 'int4' ? 'kimi_k2' : 'deepseek_v3';
  const source = await generateFamily(folder, family, { sizes: SIZES, quantised, ...options });
  return { source, checkpoint: await openCheckpoint(folder) };
}

describe.each(['fp8', 'fp8-e5m2', 'fp8-channel', 'fp8-tensor', 'int4'] as const)('%s', (quantised) => {
  test('every quantised matrix is found, with parts in other shards, and decodes to what its codes mean', async () => {
    const { source, checkpoint } = await open(quantised);
    const reader = new LocalFiles();
    const decoded: string[] = [];
    let apart = 0;
    for (const tensor of checkpoint.tensors.values()) {
      if (!isQuantised(tensor)) continue;
      const matrix = quantisedMatrix(tensor, checkpoint);
      const { name, rows, cols, encoding, data, scales } = matrix;
      if (scales?.file !== data.file) apart++;
      const values = new Float32Array(rows * cols);
      decodeMatrix({ rows, cols, encoding, transposed: false }, await readMatrix(reader, matrix), values);
      expect(values, name).toEqual(source.weights.get(name)?.values);
      decoded.push(name);
    }
    await reader.close();
    expect(decoded.sort()).toEqual(
      [...source.weights.values()]
        .filter((weight) => weight.quantised)
        .map(({ name }) => name)
        .sort(),
    );
    expect(apart).toBe(decoded.length);
  });

  test('what accompanies a matrix belongs to it; nothing else does', async () => {
    const { source, checkpoint } = await open(quantised);
    const owners = new Map([...checkpoint.tensors.values()].map((it) => [it.name, attachedTo(it, checkpoint)?.name]));
    for (const [name, owner] of owners) {
      const base = name.replace(/\.(weight_scale_inv|weight_scale|weight_shape|input_scale)$/, '.weight');
      const data = `${base}${quantised === 'int4' ? '_packed' : ''}`;
      expect(owner, name).toBe(base === name ? undefined : data);
    }
    expect([...owners.values()].filter((it) => it === undefined)).toHaveLength(source.weights.size);
  });
});

describe.each(EXPERT_FORMATS)('%s', (quantised) => {
  test('experts are found and decode to what their codes mean, whole and some rows at a time', async () => {
    const { source, checkpoint } = await open(quantised);
    const reader = new LocalFiles();
    const decoded: string[] = [];
    for (const tensor of checkpoint.tensors.values()) {
      if (!isQuantised(tensor)) continue;
      const matrix = quantisedMatrix(tensor, checkpoint);
      const { name, rows, cols } = matrix;
      const known = source.weights.get(name);
      expect([rows, cols], name).toEqual(known?.shape);
      const values = new Float32Array(rows * cols);
      decodeMatrix({ ...matrix, transposed: false }, await readMatrix(reader, matrix), values);
      expect(values, name).toEqual(known?.values);
      const byRows = new Float32Array(rows * cols);
      const opened = await openMatrix(reader, matrix);
      for (let first = 0; first < rows; first += 3) {
        const count = Math.min(3, rows - first);
        await opened.decode({ first, count }, byRows.subarray(first * cols, (first + count) * cols));
      }
      expect(byRows, name).toEqual(values);
      decoded.push(name);
    }
    await reader.close();
    const quantisedNames = [...source.weights.values()].filter((it) => it.quantised).map(({ name }) => name);
    expect(decoded.sort()).toEqual(quantisedNames.sort());
    expect(decoded.length).toBeGreaterThan(0);
  });

  test('what accompanies a matrix belongs to it; nothing else does', async () => {
    const { source, checkpoint } = await open(quantised);
    const alone = [...checkpoint.tensors.values()].filter((it) => !attachedTo(it, checkpoint));
    expect(alone.map(({ name }) => matrixName(name)).sort()).toEqual([...source.weights.keys()].sort());
  });

  test('is close to what was quantised', async () => {
    const { source } = await open(quantised);
    const plain = await generateFamily(join(root, String(made++)), 'deepseek_v3', { sizes: SIZES });
    for (const { name, values, quantised: is } of source.weights.values()) {
      const before = plain.weights.get(name)?.values as Float32Array;
      const most = before.reduce((max, it) => Math.max(max, Math.abs(it)), 0);
      const error = values.reduce((max, it, i) => Math.max(max, Math.abs(it - (before[i] as number))), 0);
      expect(error / most, name).toBeLessThan(is ? 0.25 : 1e-9);
    }
  });
});

test('a scale beside a matrix that is not quantised is a tensor like any other', async () => {
  const { checkpoint } = await open('fp8', {
    alter: (tensors) => [
      ...tensors,
      { name: 'model.layers.0.mlp.gate.weight_scale', dtype: 'F32', shape: [1], bytes: new Uint8Array(4) },
    ],
  });
  for (const name of ['model.norm.weight', 'model.layers.0.mlp.gate.weight_scale'])
    expect(attachedTo(checkpoint.tensors.get(name) as never, checkpoint)).toBeUndefined();
});

test('blocks are of 128 × 128 where the config does not say', async () => {
  const { checkpoint } = await open('fp8', {
    sizes: { ...SIZES, rows: 130, cols: 140 },
    block: [128, 128],
    config: { quantization_config: { quant_method: 'fp8' } },
  });
  const data = checkpoint.tensors.get('model.layers.1.mlp.experts.0.up_proj.weight');
  const matrix = quantisedMatrix(data as never, checkpoint);
  expect(matrix.encoding).toMatchObject({ blockRows: 128, blockCols: 128, scaleDtype: 'F32' });
  expect((matrix.scales?.end ?? 0) - (matrix.scales?.start ?? 0)).toBe(4 * 2 * 2);
});

test.each(['quantization_config', 'compression_config'])('the config keeps its entry as "%s", or nests it', (key) => {
  const entry = { quant_method: 'fp8' };
  expect(quantisationConfig({ [key]: entry })).toBe(entry);
  expect(quantisationConfig({ text_config: { quantization_config: entry } })).toBe(entry);
  expect(quantisationConfig({ thinker_config: { text_config: { [key]: entry } } })).toBe(entry);
  expect(quantisationConfig({ vision_config: { [key]: { quant_method: 'gptq' } }, llm_config: { [key]: entry } })).toBe(
    entry,
  );
  expect(quantisationConfig({ text_config: {} })).toBeUndefined();
});

describe('refused, naming the tensor:', () => {
  const base = 'model.layers.1.mlp.experts.1.up_proj.';
  const odd = `${base}weight`;
  const change = (name: string, by: Partial<StoredTensor>) => (tensors: StoredTensor[]) =>
    tensors.map((tensor) => (tensor.name === name ? { ...tensor, ...by } : tensor));
  const without = (name: string) => (tensors: StoredTensor[]) => tensors.filter((tensor) => tensor.name !== name);
  const beside = (name: string) => (tensors: StoredTensor[]) => [
    ...tensors,
    { name, dtype: 'I32', shape: [1], bytes: new Uint8Array(4) },
  ];
  const int4 = (weights: object, options: object = {}): FamilyOptions => ({
    config: {
      quantization_config: { quant_method: 'compressed-tensors', config_groups: { group_0: { weights } }, ...options },
    },
  });
  const zeros = (count: number) => new Uint8Array(count);

  type Refusal = new (...args: never[]) => errors.InputError;
  const cases: ReadonlyArray<[string, Quantisation, FamilyOptions, Refusal, string]> = [
    ['FP8 without its scales', 'fp8', { alter: without(`${odd}_scale_inv`) }, errors.MissingScaleError, '_scale_inv'],
    ['INT4 without its scales', 'int4', { alter: without(`${odd}_scale`) }, errors.MissingScaleError, '_scale'],
    [
      'FP8 with fewer scales than blocks',
      'fp8',
      { alter: change(`${odd}_scale_inv`, { shape: [1, 3], bytes: zeros(12) }) },
      errors.QuantisedShapeError,
      'it has [2,3] scales',
    ],
    [
      'FP8 with the scales of the transpose',
      'fp8',
      { alter: change(`${odd}_scale_inv`, { shape: [3, 2] }) },
      errors.QuantisedShapeError,
      'has [3,2]',
    ],
    [
      'FP8 in blocks of another size than the config says',
      'fp8',
      { config: { quantization_config: { quant_method: 'fp8', weight_block_size: [8, 8] } } },
      errors.QuantisedShapeError,
      'in blocks of 8 × 8',
    ],
    [
      'FP8 with scales that are no floats',
      'fp8',
      { alter: change(`${odd}_scale_inv`, { dtype: 'I32' }) },
      errors.UnsupportedQuantisationError,
      'its scales are I32',
    ],
    [
      'INT4 with scales of too few rows',
      'int4',
      { alter: change(`${odd}_scale`, { shape: [8, 2], bytes: zeros(32) }) },
      errors.QuantisedShapeError,
      'has [8,2]',
    ],
    [
      'INT4 with zero points of another shape',
      'int4',
      { alter: beside(`${odd}_zero_point`) },
      errors.QuantisedShapeError,
      'weight_zero_point is I32 [1], expected I32 [2,2]',
    ],
    [
      'INT4 with groups of too few columns',
      'int4',
      { alter: beside(`${odd}_g_idx`) },
      errors.QuantisedShapeError,
      'weight_g_idx is I32 [1], expected I32 [40]',
    ],
    [
      'INT4 that the config calls asymmetric, without zero points',
      'int4',
      int4({ num_bits: 4, type: 'int', symmetric: false, group_size: 32 }),
      errors.MissingScaleError,
      'weight_zero_point" is in no shard',
    ],
    [
      'packed integers of other bits than the config says',
      'int4',
      int4({ num_bits: 8, type: 'int', symmetric: true, group_size: 32 }),
      errors.QuantisedShapeError,
      'it holds [16,20] values of 8 bits',
    ],
    [
      'packed integers of bits that do not exist',
      'int4',
      int4({ num_bits: 16, type: 'int', symmetric: true, group_size: 32 }),
      errors.QuantisedShapeError,
      'values of 16 bits',
    ],
    [
      'packed floats',
      'int4',
      int4({ num_bits: 4, type: 'float', symmetric: true, group_size: 16 }),
      errors.UnsupportedQuantisationError,
      'float of 4 bits',
    ],
    [
      'INT4 in groups of another size than the config says',
      'int4',
      int4({ num_bits: 4, type: 'int', symmetric: true, group_size: 8 }),
      errors.QuantisedShapeError,
      'weight_scale',
    ],
    [
      'INT4 packed in bytes',
      'int4',
      { alter: change(`${odd}_packed`, { dtype: 'U8', shape: [16, 20] }) },
      errors.UnsupportedQuantisationError,
      'it is U8 with scales that are BF16',
    ],
    [
      'INT4 with a stored shape of three numbers',
      'int4',
      { alter: change(`${odd}_shape`, { shape: [3], bytes: zeros(12) }) },
      errors.QuantisedShapeError,
      'not two integers',
    ],
    [
      'INT4 with the decoded matrix beside it',
      'int4',
      { alter: (tensors) => [...tensors, { name: odd, dtype: 'BF16', shape: [16, 40], bytes: zeros(1280) }] },
      errors.UnsupportedQuantisationError,
      'is there beside it',
    ],
    [
      'FP8 that is no matrix',
      'fp8',
      { alter: change(odd, { shape: [2, 8, 40] }) },
      errors.UnsupportedQuantisationError,
      'not a matrix',
    ],
    ['GPTQ without its scales', 'gptq', { alter: without(`${base}scales`) }, errors.MissingScaleError, 'scales'],
    ['GPTQ without its zero points', 'gptq', { alter: without(`${base}qzeros`) }, errors.MissingScaleError, 'qzeros'],
    [
      'GPTQ with zero points of another size',
      'gptq',
      { alter: change(`${base}qzeros`, { shape: [2, 5] }) },
      errors.QuantisedShapeError,
      'qzeros is I32 [2,5], expected I32 [5,2]',
    ],
    [
      'GPTQ whose columns are no whole words',
      'gptq',
      { alter: change(`${base}g_idx`, { shape: [44], bytes: zeros(176) }) },
      errors.UnsupportedQuantisationError,
      'it is GPTQ of 3.6363636363636362 bits; those of 2, 3, 4 and 8 are decoded',
    ],
    [
      'GPTQ of a format with planes of bits',
      'gptq',
      { config: { quantization_config: { quant_method: 'gptq', bits: 4, checkpoint_format: 'gptq_p' } } },
      errors.UnsupportedQuantisationError,
      'it is GPTQ of format "gptq_p"',
    ],
    [
      'GPTQ and AWQ whose shapes are neither',
      'awq',
      { alter: change(`${base}scales`, { shape: [2, 40] }) },
      errors.QuantisedShapeError,
      "neither GPTQ's nor AWQ's shapes",
    ],
    [
      'AWQ of version gemv',
      'awq',
      { config: { quantization_config: { quant_method: 'awq', bits: 4, version: 'gemv' } } },
      errors.UnsupportedQuantisationError,
      'it is AWQ of version "gemv"',
    ],
    [
      'AWQ with more groups than rows make',
      'awq',
      {
        alter: (tensors) =>
          change(`${base}qzeros`, { shape: [41, 2], bytes: zeros(328) })(
            change(`${base}scales`, { shape: [41, 16], bytes: zeros(1312) })(tensors),
          ),
      },
      errors.QuantisedShapeError,
      'do not make 41 groups',
    ],
    [
      'NVFP4 without the scale of the matrix',
      'nvfp4',
      { alter: without(`${odd}_scale_2`) },
      errors.MissingScaleError,
      'weight_scale_2',
    ],
    [
      'packed NVFP4 without the scale of the matrix',
      'nvfp4-packed',
      { alter: without(`${odd}_global_scale`) },
      errors.MissingScaleError,
      'weight_global_scale',
    ],
    [
      'NVFP4 with a scale of the matrix for each row',
      'nvfp4',
      { alter: change(`${odd}_scale_2`, { shape: [16], bytes: zeros(64) }) },
      errors.QuantisedShapeError,
      'weight_scale_2 is F32 [16], expected one F32',
    ],
    [
      'MXFP4 with scales of too few rows',
      'mxfp4',
      { alter: change(`${odd}_scale`, { shape: [8, 5], bytes: zeros(40) }) },
      errors.QuantisedShapeError,
      'it holds [16,40] values of 4 bits',
    ],
    [
      'FP4 whose inputs are scaled too',
      'nvfp4',
      { alter: beside(odd.replace(/weight$/, 'pre_quant_scale')) },
      errors.UnsupportedQuantisationError,
      'pre_quant_scale',
    ],
    [
      'asymmetric INT8',
      'int8',
      { alter: beside(`${odd}_zero_point`) },
      errors.UnsupportedQuantisationError,
      'asymmetric INT8',
    ],
    [
      'packed integers that two schemes of the config fit',
      'int4',
      {
        config: {
          quantization_config: {
            quant_method: 'compressed-tensors',
            config_groups: {
              group_0: { weights: { num_bits: 4, type: 'int', symmetric: true, group_size: 32 } },
              group_1: { weights: { num_bits: 8, type: 'int', symmetric: true, group_size: 16 } },
            },
          },
        },
      },
      errors.UnsupportedQuantisationError,
      'INT4 in groups of 32, INT8 in groups of 16',
    ],
    [
      'sparse integers',
      'int4',
      { alter: beside(odd.replace(/weight$/, 'meta')) },
      errors.UnsupportedQuantisationError,
      'marlin-24',
    ],
  ];
  test.each(cases)('%s', async (_, quantised, options, error, says) => {
    const { checkpoint } = await open(quantised, options);
    const decodeAll = () =>
      [...checkpoint.tensors.values()].filter(isQuantised).map((tensor) => quantisedMatrix(tensor, checkpoint));
    expect(decodeAll).toThrow(error);
    expect(decodeAll).toThrow(says);
    if (options.alter) expect(decodeAll).toThrow(base);
    expect(decodeAll).not.toThrow(/download/i);
  });

  // The name that the error must have, the data tensor, the tensors beside it, and the `quant_method`.
  const foreign: ReadonlyArray<[name: string, data: [string, string, number[]], beside: string[], method?: string]> = [
    ['bitsandbytes', ['weight', 'U8', [320, 1]], ['weight.absmax', 'weight.quant_map']],
    ['bitsandbytes', ['weight', 'I8', [16, 40]], ['SCB']],
    ['HQQ', ['W_q', 'U8', [16, 20]], ['scale', 'zero']],
    ['AQLM', ['codes', 'I16', [16, 5, 1]], ['codebooks', 'scales']],
    ['EXL2', ['q_weight', 'I32', [5, 16]], ['q_scale', 'q_groups']],
    ['EXL3', ['trellis', 'I16', [1, 2, 48]], ['suh', 'svh']],
    ['QuIP#', ['Qidxs', 'I64', [16, 5]], ['SU', 'SV']],
    ['VPTQ', ['indices', 'I32', [1, 5, 16]], ['centroids.weight']],
    ['GGUF', ['qweight', 'U8', [16, 44]], ['qweight_type']],
    ['MLX', ['weight', 'U32', [16, 5]], ['scales', 'biases']],
    ['BitNet', ['weight', 'U8', [4, 40]], ['weight_scale'], 'bitnet'],
  ];
  test.each(foreign)('%s, by its name: %j', async (name, [suffix, dtype, shape], besides, method) => {
    const { checkpoint } = await open('fp8', {
      config: { quantization_config: { quant_method: method ?? name.toLowerCase() } },
      alter: (tensors) => [
        ...tensors.filter((it) => !it.name.startsWith(base)),
        { name: `${base}${suffix}`, dtype, shape, bytes: zeros(shape.reduce((a, b) => a * b) * BYTES[dtype as 'U8']) },
        ...besides.map((it) => ({ name: `${base}${it}`, dtype: 'F32', shape: [1], bytes: zeros(4) })),
      ],
    });
    const data = checkpoint.tensors.get(`${base}${suffix}`) as TensorInfo;
    expect(() => expertsOf(data, checkpoint)).toThrow(errors.UnsupportedQuantisationError);
    expect(() => expertsOf(data, checkpoint)).toThrow(`it is ${name}`);
    expect(() => expertsOf(data, checkpoint)).not.toThrow(/download/i);
  });
  const BYTES = { U8: 1, I8: 1, I16: 2, I32: 4, U32: 4, I64: 8 };

  test.each(['gptq', 'int4'] as const)('%s whose g_idx names no group, when that is read', async (quantised) => {
    const indices = new Uint8Array(new Int32Array(40).fill(7).buffer);
    const name = quantised === 'gptq' ? `${base}g_idx` : `${odd}_g_idx`;
    const { checkpoint } = await open(quantised, {
      alter: (tensors) => [
        ...tensors.filter((it) => it.name !== name),
        { name, dtype: 'I32', shape: [40], bytes: indices },
      ],
    });
    const data = checkpoint.tensors.get(quantised === 'gptq' ? `${base}qweight` : `${odd}_packed`) as TensorInfo;
    const reader = new LocalFiles();
    const reading = readMatrix(reader, quantisedMatrix(data, checkpoint));
    await expect(reading).rejects.toThrow(errors.QuantisedShapeError);
    await expect(reading).rejects.toThrow('its g_idx names group 7');
    await reader.close();
  });

  test.each(['I32', 'I64'])('a stored shape in %s that disagrees with the data, when that is read', async (dtype) => {
    const numbers = dtype === 'I32' ? Int32Array.of(16, 39) : BigInt64Array.of(16n, 39n);
    const { checkpoint } = await open('int4', {
      alter: change(`${odd}_shape`, { dtype, bytes: new Uint8Array(numbers.buffer) }),
    });
    const matrix = quantisedMatrix(checkpoint.tensors.get(`${odd}_packed`) as never, checkpoint);
    const reader = new LocalFiles();
    await expect(readMatrix(reader, matrix)).rejects.toThrow(errors.QuantisedShapeError);
    await expect(readMatrix(reader, matrix)).rejects.toThrow('its shape is stored as [16,39], its data is [16,40]');
    await reader.close();
  });
});
