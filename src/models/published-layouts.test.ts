/** Reads experts in the layouts of published checkpoints: fused or transposed, with gate and up in halves or alternating. */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { decodeExperts } from '../../fixtures/decode-experts.js';
import { readFloats } from '../../fixtures/dequantise.js';
import type { StoredTensor } from '../../fixtures/quantised-storage.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { encodeFloats } from '../checkpoint/codec.js';
import type { StoredMatrix } from '../checkpoint/stored-matrix.js';
import { PROJECTIONS, type Projection } from './family.js';

const root = temporaryFolder();
let made = 0;

const [N, P, D] = [3, 8, 32];
const LAYER = 'model.layers.0.mlp.experts.';

/** The value of element (i, j) of an expert's projection, before it is rounded to bf16. */
const element = (expert: number, projection: Projection, i: number, j: number): number =>
  (expert * 3 + PROJECTIONS.indexOf(projection) + 1) * (i - j / 32) * (i % 2 ? -1 : 1);

const rounded = (value: number): number =>
  readFloats('BF16', encodeFloats('BF16', Float32Array.of(value)))[0] as number;

/** A tensor (n, height, width), row-major, whose elements `at` computes. */
function stack(height: number, width: number, at: (expert: number, y: number, x: number) => number): Float32Array {
  return Float32Array.from({ length: N * height * width }, (_, i) =>
    at(Math.floor(i / height / width), Math.floor(i / width) % height, i % width),
  );
}

const bf16 = (name: string, shape: number[], values: Float32Array, prefix = LAYER): StoredTensor => ({
  name: `${prefix}${name}`,
  dtype: 'BF16',
  shape,
  bytes: encodeFloats('BF16', values),
});

const experts = (tensors: readonly StoredTensor[], config: object) =>
  decodeExperts(join(root, String(made++)), tensors, config);

/** Checks that every expert of every projection is found once and decodes to its own numbers. */
async function expectExperts(
  tensors: readonly StoredTensor[],
  config: object,
  projections: readonly Projection[] = PROJECTIONS,
): Promise<StoredMatrix[]> {
  const decoded = await experts(tensors, config);
  expect(decoded.map(({ expert, projection }) => `${expert} ${projection}`).sort()).toEqual(
    projections.flatMap((projection) => Array.from({ length: N }, (_, expert) => `${expert} ${projection}`)).sort(),
  );
  for (const { expert, projection, matrix, values } of decoded) {
    const [rows, cols] = projection === 'down_proj' ? [D, P] : [P, D];
    expect([matrix.rows, matrix.cols]).toEqual([rows, cols]);
    const expected = values.map((_, i) => rounded(element(expert, projection, Math.floor(i / cols), i % cols)));
    expect(values, matrix.name).toEqual(expected);
  }
  return decoded.map(({ matrix }) => matrix);
}

/** Checks that the elements at each expert's place in the source are the expert's. */
function expectPlaces(matrices: readonly StoredMatrix[], tensors: readonly StoredTensor[]): void {
  for (const { name, rows, cols, place } of matrices) {
    const { bytes, dtype } = tensors.find((it) => it.name === place.tensor) as StoredTensor;
    const values = readFloats(dtype, bytes);
    const { row, column } = place.steps ?? { row: cols, column: 1 };
    const [, expert, projection] = /(\d+)\.(\w+)\.weight$/.exec(name) as unknown as [string, string, Projection];
    for (let i = 0; i < rows; i++)
      for (let j = 0; j < cols; j++)
        expect(values[place.element + i * row + j * column]).toBe(rounded(element(Number(expert), projection, i, j)));
  }
}

const half = (y: number): Projection => (y < P ? 'gate_proj' : 'up_proj');
const other = (y: number): Projection => (y % 2 === 0 ? 'gate_proj' : 'up_proj');

const down = (transposed: boolean): StoredTensor =>
  transposed
    ? bf16(
        'down_proj',
        [N, P, D],
        stack(P, D, (e, y, x) => element(e, 'down_proj', x, y)),
      )
    : bf16(
        'down_proj',
        [N, D, P],
        stack(D, P, (e, y, x) => element(e, 'down_proj', y, x)),
      );

describe('experts are found with their own numbers and places:', () => {
  test('gate over up, from the left', async () => {
    const values = stack(2 * P, D, (e, y, x) => element(e, half(y), y % P, x));
    const tensors = [bf16('gate_up_proj', [N, 2 * P, D], values), down(false)];
    expectPlaces(await expectExperts(tensors, { model_type: 'qwen3_moe' }), tensors);
  });

  test('gate beside up, from the right: Qwen3-VL-MoE and Llama 4', async () => {
    const values = stack(D, 2 * P, (e, y, x) => element(e, half(x), x % P, y));
    const tensors = [bf16('gate_up_proj', [N, D, 2 * P], values), down(true)];
    expectPlaces(await expectExperts(tensors, { model_type: 'qwen3_vl_moe' }), tensors);
  });

  test.each([{ model_type: 'gpt_oss' }, { model_type: 'any', text_config: { model_type: 'gpt_oss' } }])(
    'gate and up alternating, from the right: gpt-oss, %j',
    async (config) => {
      const values = stack(D, 2 * P, (e, y, x) => element(e, other(x), Math.floor(x / 2), y));
      const bias = bf16('gate_up_proj_bias', [N, 2 * P], new Float32Array(N * 2 * P));
      const tensors = [bf16('gate_up_proj', [N, D, 2 * P], values), down(true), bias];
      expectPlaces(await expectExperts(tensors, config), tensors);
    },
  );

  test('from the right where p = d, which one of the two shapes cannot tell', async () => {
    const values = new Float32Array(2 * 8 * 16).map((_, i) => i);
    const square = (name: string, shape: number[]) =>
      bf16(
        name,
        shape,
        values.subarray(
          0,
          shape.reduce((a, b) => a * b),
        ),
      );
    const decoded = await experts([square('gate_up_proj', [2, 8, 16]), square('down_proj', [2, 8, 8])], {});
    const up = decoded.find(({ expert, projection }) => expert === 0 && projection === 'up_proj');
    expect([...(up?.values.subarray(0, 8) ?? [])]).toEqual(Array.from({ length: 8 }, (_, j) => 8 + 16 * j));
  });
});

describe('names of families:', () => {
  type At = (expert: number, y: number, x: number) => number;
  type Row = readonly [name: string, height: number, width: number, at: At];

  /** A matrix (outputs, inputs) of one projection, and its transpose. */
  const matrix =
    (projection: Projection): At =>
    (e, y, x) =>
      element(e, projection, y, x);
  const turned =
    (at: At): At =>
    (e, y, x) =>
      at(e, x, y);
  const gateUp: At = (e, y, x) => element(e, half(y), y % P, x);
  const alternating: At = (e, y, x) => element(e, other(y), Math.floor(y / 2), x);
  const [gate, up, downOf] = PROJECTIONS.map(matrix) as [At, At, At];
  const router: Row = ['router.layer.weight', 1, D, () => 1];

  const rows: ReadonlyArray<readonly [family: string, prefix: string, tensors: readonly Row[]]> = [
    [
      'Gemma 4, without a module',
      'model.language_model.layers.1.',
      [
        ['experts.gate_up_proj', 2 * P, D, gateUp],
        ['experts.down_proj', D, P, downOf],
      ],
    ],
    [
      'Granite-MoE',
      'model.layers.1.block_sparse_moe.',
      [
        ['input_linear.weight', 2 * P, D, gateUp],
        ['output_linear.weight', D, P, downOf],
      ],
    ],
    [
      'JetMoE',
      'model.layers.1.mlp.',
      [
        ['input_linear.weight', 2 * P, D, gateUp],
        ['output_linear.weight', D, P, downOf],
      ],
    ],
    [
      'Step',
      'model.layers.1.moe.',
      [
        ['gate_proj.weight', P, D, gate],
        ['up_proj.weight', P, D, up],
        ['down_proj.weight', D, P, downOf],
      ],
    ],
    [
      'Aria',
      'language_model.model.layers.1.mlp.',
      [
        ['experts.fc1.weight', D, 2 * P, turned(gateUp)],
        ['experts.fc2.weight', P, D, turned(downOf)],
      ],
    ],
    [
      'Inkling',
      'model.llm.layers.1.mlp.',
      [
        ['experts.w13_weight', 2 * P, D, alternating],
        ['experts.w2_weight', D, P, downOf],
      ],
    ],
    [
      'one fused tensor a projection',
      'model.layers.1.mlp.',
      [
        ['experts.gate_proj', P, D, gate],
        ['experts.up_proj', P, D, up],
        ['experts.down_proj', D, P, downOf],
      ],
    ],
    [
      'fused, without a gate',
      'model.layers.1.mixer.',
      [
        ['experts.up_proj', P, D, up],
        ['experts.down_proj', D, P, downOf],
      ],
    ],
    [
      'fused by NeMo, without a gate',
      'llm.model.layers.1.mixer.',
      [
        ['experts.gate_and_up_projs', D, P, turned(up)],
        ['experts.down_projs', P, D, turned(downOf)],
      ],
    ],
    [
      'DBRX',
      'transformer.blocks.1.ffn.',
      [['experts.mlp.w1', P, D, gate], ['experts.mlp.v1', P, D, up], ['experts.mlp.w2', P, D, turned(downOf)], router],
    ],
  ];
  test.each(rows)('%s', async (family, prefix, own) => {
    const flat = family === 'DBRX';
    const tensors = own.map(([name, height, width, at]) =>
      bf16(name, flat ? [N * height, width] : [N, height, width], stack(height, width, at), prefix),
    );
    const held = own.some(([name]) => /gate_proj|gate_up|w1|fc1|input/.test(name))
      ? PROJECTIONS
      : (['up_proj', 'down_proj'] as const);
    expectPlaces(await expectExperts(tensors, {}, held), tensors);
  });

  const separate: ReadonlyArray<readonly [family: string, prefix: string, names: readonly string[]]> = [
    ['Jamba', 'model.layers.1.feed_forward.', ['gate_proj', 'up_proj', 'down_proj']],
    ['Nemotron-H', 'backbone.layers.1.mixer.', ['', 'up_proj', 'down_proj']],
    ['LFM2', 'model.layers.1.feed_forward.', ['w1', 'w3', 'w2']],
    ['DeepSeek-V4', 'layers.1.ffn.', ['w1', 'w3', 'w2']],
    ['Mistral', 'layers.1.', ['w1', 'w3', 'w2']],
  ];
  test.each(separate)('%s', async (_, prefix, names) => {
    const held = PROJECTIONS.filter((_, i) => names[i]);
    const tensors = held.flatMap((projection) => {
      const [rows, cols] = projection === 'down_proj' ? [D, P] : [P, D];
      return Array.from({ length: N }, (_, e) => {
        const values = Float32Array.from({ length: rows * cols }, (_, i) =>
          element(e, projection, Math.floor(i / cols), i % cols),
        );
        const name = names[PROJECTIONS.indexOf(projection)] as string;
        return bf16(`experts.${e}.${name}.weight`, [rows, cols], values, prefix);
      });
    });
    await expectExperts(tensors, {}, held);
  });

  test('dense modules and attention with like names are none', async () => {
    const name = (prefix: string, own: string, ...shape: number[]) =>
      bf16(own, shape, new Float32Array(shape.reduce((a, b) => a * b)), `model.layers.1.${prefix}`);
    const tensors = [
      name('mlp.', 'gate_proj.weight', P, D),
      name('mlp.', 'input_linear.weight', 2 * P, D),
      name('moe.', 'gate_proj.weight', P, D),
      name('shared_mlp.', 'input_linear.weight', 2 * P, D),
      name('mlp.shared_experts.', 'gate_proj.weight', P, D),
      name('self_attention.experts.', 'input_linear.weight', N, P, D),
    ];
    expect(await experts(tensors, {})).toEqual([]);
  });
});
