/** Decodes quantised experts in the forms of published checkpoints: fused MXFP4 and FP8, FP8 of several writers, mixed dtypes. */
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { decodeExperts } from '../../fixtures/decode-experts.js';
import { dequantiseFp8, float8, readFloats } from '../../fixtures/dequantise.js';
import { quantiseFp8 } from '../../fixtures/quantise.js';
import type { StoredTensor } from '../../fixtures/quantised-storage.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import { encodeFloats } from '../checkpoint/codec.js';
import { describeEncoding } from '../checkpoint/encoding.js';

const root = temporaryFolder();
let made = 0;

const [N, P, D] = [3, 8, 32];
const LAYER = 'model.layers.0.mlp.experts.';

const bf16 = (name: string, shape: number[], values: Float32Array): StoredTensor => ({
  name: `${LAYER}${name}`,
  dtype: 'BF16',
  shape,
  bytes: encodeFloats('BF16', values),
});

const experts = (tensors: readonly StoredTensor[], config: object) =>
  decodeExperts(join(root, String(made++)), tensors, config);

describe("gpt-oss's MXFP4", () => {
  const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];
  const [p, d] = [32, 64];
  const random = (length: number, seed: number): Uint8Array => {
    let x = seed;
    return Uint8Array.from({ length }, () => {
      x = (Math.imul(1664525, x) + 1013904223) >>> 0;
      return x >>> 24;
    });
  };
  const blocks = (name: string, rows: number, cols: number, seed: number): StoredTensor[] => [
    {
      name: `${LAYER}${name}_blocks`,
      dtype: 'U8',
      shape: [N, rows, cols / 32, 16],
      bytes: random((N * rows * cols) / 2, seed),
    },
    {
      name: `${LAYER}${name}_scales`,
      dtype: 'U8',
      shape: [N, rows, cols / 32],
      bytes: random((N * rows * cols) / 32, seed + 1).map((it) => 110 + (it % 20)),
    },
  ];
  const tensors = [...blocks('gate_up_proj', 2 * p, d, 1), ...blocks('down_proj', d, p, 3)];

  test('is read as its formula says, gate and up from alternating rows', async () => {
    const decoded = await experts(tensors, { model_type: 'gpt_oss' });
    expect(decoded).toHaveLength(3 * N);
    for (const { expert, projection, matrix, values } of decoded) {
      const isDown = projection === 'down_proj';
      const [codes, scales] = tensors.slice(isDown ? 2 : 0) as [StoredTensor, StoredTensor];
      const [rows, cols] = isDown ? [d, p] : [p, d];
      expect([matrix.rows, matrix.cols]).toEqual([rows, cols]);
      const storedRows = isDown ? d : 2 * p;
      const expected = values.map((_, i) => {
        const row = isDown ? Math.floor(i / cols) : 2 * Math.floor(i / cols) + Number(projection === 'up_proj');
        const at = (expert * storedRows + row) * cols + (i % cols);
        const byte = codes.bytes[Math.floor(at / 2)] as number;
        const code = at % 2 === 0 ? byte % 16 : Math.floor(byte / 16);
        return (E2M1[code] as number) * 2 ** ((scales.bytes[Math.floor(at / 32)] as number) - 127);
      });
      expect(values, matrix.name).toEqual(expected);
      expect(describeEncoding(matrix.encoding)).toBe('MXFP4 in groups of 32');
    }
  });

  test('belongs where transformers puts it as floats: transposed, alternating columns', async () => {
    const decoded = await experts(tensors, { model_type: 'gpt_oss' });
    const places = Object.fromEntries(
      decoded.filter(({ expert }) => expert === 1).map(({ projection, matrix }) => [projection, matrix.place]),
    );
    const size = 2 * p * d;
    const tensor = `${LAYER}gate_up_proj`;
    expect(places).toEqual({
      gate_proj: { tensor, element: size, steps: { row: 2, column: 2 * p } },
      up_proj: { tensor, element: size + 1, steps: { row: 2, column: 2 * p } },
      down_proj: { tensor: `${LAYER}down_proj`, element: p * d, steps: { row: 1, column: d } },
    });
  });

  test('without its scales is refused', async () => {
    await expect(experts(tensors.slice(0, 3), { model_type: 'gpt_oss' })).rejects.toThrow(
      'down_proj_scales" is in no shard',
    );
  });

  test('with scales of another shape is refused', async () => {
    const odd = tensors.map((it, i) => (i === 3 ? { ...it, shape: [N, p, d / 32] } : it));
    await expect(experts(odd, { model_type: 'gpt_oss' })).rejects.toThrow('down_proj_scales is U8');
  });
});

describe('fused FP8', () => {
  type Grid = [blockRows: number, blockCols: number];
  const fp8 = (
    name: string,
    rows: number,
    cols: number,
    [blockRows, blockCols]: Grid,
    suffix: string,
    shape: number[],
  ) => {
    const parts = Array.from({ length: N }, (_, e) => {
      const values = Float32Array.from({ length: rows * cols }, (_, i) => Math.sin(i + e) * (1 + (i % 5)));
      return quantiseFp8(values, rows, cols, blockRows, blockCols, 'F8_E4M3');
    });
    const bytes = new Uint8Array(Buffer.concat(parts.map(({ data }) => data)));
    const scales = new Uint8Array(Buffer.concat(parts.map(({ scales: it }) => it)));
    return [
      { name: `${LAYER}${name}`, dtype: 'F8_E4M3', shape: [N, rows, cols], bytes },
      { name: `${LAYER}${name}${suffix}`, dtype: 'F32', shape, bytes: scales },
    ];
  };

  async function expectValues(tensors: StoredTensor[], config: object, blocks: Record<string, Grid>, turned: boolean) {
    const decoded = await experts(tensors, config);
    expect(decoded).toHaveLength(3 * N);
    for (const { expert, projection, matrix, values } of decoded) {
      const name = projection === 'down_proj' ? 'down_proj' : 'gate_up_proj';
      const [codes, scales] = tensors.filter((it) => it.name.startsWith(`${LAYER}${name}`)) as [
        StoredTensor,
        StoredTensor,
      ];
      const [, R = 0, C = 0] = codes.shape;
      const [blockRows, blockCols] = blocks[name] as Grid;
      const across = Math.ceil(C / blockCols);
      const first = projection === 'up_proj' ? P : 0;
      const factors = readFloats('F32', scales.bytes);
      const expected = values.map((_, i) => {
        const [row, col] = [first + Math.floor(i / matrix.cols), i % matrix.cols];
        const [y, x] = turned ? [col, row] : [row, col];
        const block =
          expert * Math.ceil(R / blockRows) * across + Math.floor(y / blockRows) * across + Math.floor(x / blockCols);
        return float8('F8_E4M3', codes.bytes[expert * R * C + y * C + x] as number) * (factors[block] as number);
      });
      expect(values, matrix.name).toEqual(expected);
    }
  }

  test('in blocks that gate and up share, as transformers saves it', async () => {
    const blocks: Record<string, Grid> = { gate_up_proj: [6, 16], down_proj: [6, 16] };
    await expectValues(
      [
        ...fp8('gate_up_proj', 2 * P, D, [6, 16], '_scale_inv', [N, 3, 2]),
        ...fp8('down_proj', D, P, [6, 16], '_scale_inv', [N, 6, 1]),
      ],
      { quantization_config: { quant_method: 'fp8', weight_block_size: [6, 16] } },
      blocks,
      false,
    );
  });

  test('transposed, with a scale for each output channel: Llama 4', async () => {
    await expectValues(
      [
        ...fp8('gate_up_proj', D, 2 * P, [D, 1], '_scale', [N, 1, 2 * P]),
        ...fp8('down_proj', P, D, [P, 1], '_scale', [N, 1, D]),
      ],
      { quantization_config: { quant_method: 'fbgemm_fp8' } },
      { gate_up_proj: [D, 1], down_proj: [P, 1] },
      true,
    );
  });

  test('with a scale for each expert', async () => {
    await expectValues(
      [
        ...fp8('gate_up_proj', 2 * P, D, [2 * P, D], '_weight_scale', [N]),
        ...fp8('down_proj', D, P, [D, P], '_weight_scale', [N]),
      ],
      { quantization_config: { quant_method: 'modelopt' } },
      { gate_up_proj: [2 * P, D], down_proj: [D, P] },
      false,
    );
  });
});

test('experts of one layer in different dtypes are each what they are', async () => {
  const values = Float32Array.from({ length: P * D }, (_, i) => Math.cos(i));
  const { data, scales } = quantiseFp8(values, P, D, 128, 128, 'F8_E4M3');
  const names = ['gate_proj', 'up_proj', 'down_proj'];
  const tensors = Array.from({ length: N }, (_, e) => e).flatMap((e): StoredTensor[] =>
    names.flatMap((name) => {
      const shape = name === 'down_proj' ? [D, P] : [P, D];
      return e === 2
        ? [bf16(`${e}.${name}.weight`, shape, values)]
        : [
            { name: `${LAYER}${e}.${name}.weight`, dtype: 'F8_E4M3', shape, bytes: data },
            { name: `${LAYER}${e}.${name}.weight_scale_inv`, dtype: 'F32', shape: [1, 1], bytes: scales },
          ];
    }),
  );
  const decoded = await experts(tensors, { quantization_config: { weight_block_size: [128, 128] } });
  for (const { expert, matrix, values: found } of decoded) {
    expect(describeEncoding(matrix.encoding)).toBe(expert === 2 ? 'BF16' : 'F8_E4M3 in 128 × 128 blocks');
    const error = found.reduce((max, it, i) => Math.max(max, Math.abs(it - (values[i] as number))), 0);
    expect(error).toBeLessThan(expert === 2 ? 0.004 : 0.04);
  }
});

describe('FP8 in separate tensors, by whoever wrote it:', () => {
  const one = (scale: StoredTensor, data: Uint8Array) => [
    { name: `${LAYER}0.up_proj.weight`, dtype: 'F8_E4M3', shape: [P, D], bytes: data },
    scale,
  ];
  const values = Float32Array.from({ length: P * D }, (_, i) => Math.cos(i) * (1 + Math.floor(i / 50)));
  const cases: ReadonlyArray<[string, [number, number], string, number[], object]> = [
    [
      'compressed-tensors, strategy block',
      [4, 16],
      'weight_scale',
      [2, 2],
      group({ strategy: 'block', block_structure: [4, 16] }),
    ],
    [
      'the same as older versions write it',
      [4, 16],
      'weight_scale',
      [2, 2],
      group({ strategy: 'block', block_structure: '4x16' }),
    ],
    [
      'compressed-tensors, strategy group',
      [1, 16],
      'weight_scale',
      [8, 2],
      group({ strategy: 'group', group_size: 16 }),
    ],
    ['compressed-tensors, strategy channel', [1, D], 'weight_scale', [8, 1], group({ strategy: 'channel' })],
    ['compressed-tensors, strategy tensor', [P, D], 'weight_scale', [1], group({ strategy: 'tensor' })],
    ['a scale for each row, without a second axis', [1, D], 'weight_scale', [8], { quant_method: 'fbgemm_fp8' }],
    ['ModelOpt, one scale', [P, D], 'weight_scale', [], { quant_method: 'modelopt', quant_algo: 'FP8' }],
    ['ModelOpt, blocks with axes of one', [4, 16], 'weight_scale', [2, 1, 2, 1], { weight_block_size: [4, 16] }],
    ['DeepSeek, any block', [3, 20], 'weight_scale_inv', [3, 2], { quant_method: 'fp8', weight_block_size: [3, 20] }],
    ['DeepSeek-V4, "scale"', [3, 20], 'scale', [3, 2], { quant_method: 'fp8', weight_block_size: [3, 20] }],
  ];
  function group(weights: object): object {
    const all = { num_bits: 8, type: 'float', symmetric: true, ...weights };
    return { quant_method: 'compressed-tensors', config_groups: { group_0: { targets: ['Linear'], weights: all } } };
  }

  test.each(cases)('%s', async (_, [blockRows, blockCols], suffix, shape, quantization_config) => {
    const { data, scales } = quantiseFp8(values, P, D, blockRows, blockCols, 'F8_E4M3');
    const scale = { name: `${LAYER}0.up_proj.${suffix}`, dtype: 'F32', shape, bytes: scales };
    const config = { thinker_config: { text_config: { quantization_config } } };
    const decoded = await experts(one(scale, data), config);
    const expected = dequantiseFp8('F8_E4M3', data, readFloats('F32', scales), D, [blockRows, blockCols]);
    expect(decoded[0]?.values).toEqual(expected);
  });

  test("DeepSeek-V4's FP4: two codes in an I8, an e8m0 scale for 16 of them", async () => {
    const bytes = Uint8Array.from({ length: (P * D) / 2 }, (_, i) => (i * 37) % 256);
    const tensors = [
      { name: `${LAYER}0.up_proj.weight`, dtype: 'I8', shape: [P, D / 2], bytes },
      { name: `${LAYER}0.up_proj.scale`, dtype: 'F8_E8M0', shape: [P, 1], bytes: new Uint8Array(P).fill(128) },
    ];
    const decoded = await experts(tensors, { quantization_config: { quant_method: 'fp8' } });
    expect(decoded[0]?.matrix).toMatchObject({ rows: P, cols: D });
    // The byte 37 has the codes 5 and 2, which are 3 and 1 in e2m1. The scale is 2.
    expect([...(decoded[0]?.values.subarray(0, 4) ?? [])]).toEqual([0, 0, 6, 2]);
  });
});
