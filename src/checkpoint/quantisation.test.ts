import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { type FamilyOptions, generateFamily } from '../../fixtures/generate-family.js';
import type { Quantisation, StoredTensor } from '../../fixtures/quantised-storage.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import * as errors from '../errors.js';
import { LocalFiles } from '../sources/files.js';
import { openCheckpoint } from './open-checkpoint.js';
import { attachedTo, isQuantised, quantisationConfig, quantisedMatrix } from './quantisation.js';
import { decodeMatrix, readMatrix } from './stored-matrix.js';

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
  expect(quantisationConfig({ text_config: {} })).toBeUndefined();
});

describe('refused, naming the tensor:', () => {
  const odd = 'model.layers.1.mlp.experts.1.up_proj.weight';
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
  ];
  test.each(cases)('%s', async (_, quantised, options, error, says) => {
    const { checkpoint } = await open(quantised, options);
    const decodeAll = () =>
      [...checkpoint.tensors.values()].filter(isQuantised).map((tensor) => quantisedMatrix(tensor, checkpoint));
    expect(decodeAll).toThrow(error);
    expect(decodeAll).toThrow(says);
    if (options.alter) expect(decodeAll).toThrow(odd);
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
