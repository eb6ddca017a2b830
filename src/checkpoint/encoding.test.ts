import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { numberSequence, SCALE_PATTERNS, sha256, sha256Floats } from '../../fixtures/number-sequence.js';
import { QUANTISED } from '../../fixtures/paths.js';
import { packInt4, quantiseFp8 } from '../../fixtures/quantise.js';
import { decodeFloats, encodeFloats } from './codec.js';
import { decodeRows, describeEncoding, type Encoding, type ScaleDtype, storedBytes } from './encoding.js';
import { type Float8Dtype, float8Values } from './float8.js';

interface Matrix {
  rows: number;
  cols: number;
  seed: number;
}
type Fp8Case = Matrix & { dtype: 'F8_E4M3' | 'F8_E5M2'; blockRows: number; blockCols: number };
type Int4Case = Matrix & { groupSize: number };
type Decoded = { scaleDtype: ScaleDtype; values: string };
type Encoded = { data: string; scales: string; values: string };

/** See fixtures/quantised.py for what it holds. */
const reference: {
  tables: Record<Float8Dtype, string>;
  fp8: (Fp8Case & Decoded)[];
  int4: (Int4Case & Decoded)[];
  quantised: (Fp8Case & Encoded)[];
  packed: (Int4Case & Encoded)[];
} = JSON.parse(readFileSync(QUANTISED, 'utf8'));

const fp8 = (it: Fp8Case, scaleDtype: ScaleDtype): Encoding => ({
  kind: 'codes',
  dtype: it.dtype,
  scaleDtype,
  blockRows: it.blockRows,
  blockCols: it.blockCols,
});
const int4 = ({ groupSize }: { groupSize: number }, scaleDtype: ScaleDtype): Encoding => ({
  kind: 'packed',
  bits: 4,
  scaleDtype,
  groupSize,
  zeroRows: 0,
  reordered: false,
});

/** Codes and scales as the generator makes them from the seed. */
function stored(encoding: Encoding & { scaleDtype: ScaleDtype }, { rows, cols, seed }: Matrix) {
  const next = numberSequence(seed);
  const sizes = storedBytes(encoding, rows, cols);
  const fill = (length: number, bytes: number, pattern: (x: number) => number): Uint8Array => {
    const buffer = Buffer.alloc(length);
    for (let i = 0; i < length; i += bytes) buffer.writeUIntLE(pattern(next()), i, bytes);
    return buffer;
  };
  const data = encoding.kind === 'packed' ? fill(sizes.data, 4, (x) => x) : fill(sizes.data, 1, (x) => x >>> 24);
  return { data, scales: fill(sizes.scales, ...SCALE_PATTERNS[encoding.scaleDtype]) };
}

function randomMatrix({ rows, cols, seed }: Matrix): Float32Array {
  const next = numberSequence(seed);
  return Float32Array.from({ length: rows * cols }, (_, i) => ((next() >>> 8) / 2 ** 24 - 0.5) / 2 ** ((i % cols) % 7));
}

function decodeAll(encoding: Encoding, rows: number, cols: number, data: Uint8Array, scales: Uint8Array): Float32Array {
  const values = new Float32Array(rows * cols);
  decodeRows(encoding, cols, { first: 0, count: rows }, data, scales, values);
  return values;
}

describe('8-bit floats', () => {
  test.each(['F8_E4M3', 'F8_E5M2', 'F8_E8M0'] as const)('the 256 codes of %s are what PyTorch says', (dtype) => {
    const expected = new Float32Array(256);
    decodeFloats('F32', Buffer.from(reference.tables[dtype], 'base64'), expected);
    expect(float8Values(dtype)).toEqual(expected);
  });
});

describe('decoding equals PyTorch and compressed-tensors, bit for bit', () => {
  test.each(reference.fp8)('$dtype $rows × $cols in $blockRows × $blockCols blocks, scales $scaleDtype', (it) => {
    const encoding = fp8(it, it.scaleDtype) as Encoding & Decoded;
    const { data, scales } = stored(encoding, it);
    expect(sha256Floats(decodeAll(encoding, it.rows, it.cols, data, scales))).toBe(it.values);
  });

  test.each(reference.int4)('INT4 $rows × $cols in groups of $groupSize, scales $scaleDtype', (it) => {
    const encoding = int4(it, it.scaleDtype) as Encoding & Decoded;
    const { data, scales } = stored(encoding, it);
    expect(sha256Floats(decodeAll(encoding, it.rows, it.cols, data, scales))).toBe(it.values);
  });
});

describe("the fixtures' quantiser equals PyTorch and compressed-tensors, bit for bit", () => {
  test.each(reference.quantised)('$dtype $rows × $cols in $blockRows × $blockCols blocks', (it) => {
    const { data, scales } = quantiseFp8(randomMatrix(it), it.rows, it.cols, it.blockRows, it.blockCols, it.dtype);
    const values = sha256Floats(decodeAll(fp8(it, 'F32'), it.rows, it.cols, data, scales));
    expect({ data: sha256(data), scales: sha256(scales), values }).toEqual({
      data: it.data,
      scales: it.scales,
      values: it.values,
    });
  });

  test.each(reference.packed)('INT4 $rows × $cols in groups of $groupSize', (it) => {
    const { packed, scales } = packInt4(randomMatrix(it), it.rows, it.cols, it.groupSize);
    const values = sha256Floats(decodeAll(int4(it, 'BF16'), it.rows, it.cols, packed, scales));
    expect({ data: sha256(packed), scales: sha256(scales), values }).toEqual({
      data: it.data,
      scales: it.scales,
      values: it.values,
    });
  });
});

describe('encoding and decoding', () => {
  const size = fc.integer({ min: 1, max: 20 });
  const matrix = fc.record({ rows: size, cols: size, blockRows: size, blockCols: size }).chain((shape) =>
    fc.record({
      shape: fc.constant(shape),
      values: fc
        .array(fc.float({ noNaN: true, min: -1000, max: 1000 }), {
          minLength: shape.rows * shape.cols,
          maxLength: shape.rows * shape.cols,
        })
        // Below that, the scales are subnormal and quotients lose digits.
        .map((values) => Float32Array.from(values, (value) => (Math.abs(value) < 1e-20 ? 0 : value))),
    }),
  );

  test.each(['F8_E4M3', 'F8_E5M2'] as const)('takes each number to the nearest of %s, within half a step', (dtype) => {
    const codes = [...float8Values(dtype)].filter(Number.isFinite);
    fc.assert(
      fc.property(matrix, ({ values, shape: { rows, cols, blockRows, blockCols } }) => {
        const { data, scales } = quantiseFp8(values, rows, cols, blockRows, blockCols, dtype);
        const encoding: Encoding = { kind: 'codes', dtype, scaleDtype: 'F32', blockRows, blockCols };
        const decoded = decodeAll(encoding, rows, cols, data, scales);
        const across = Math.ceil(cols / blockCols);
        values.forEach((value, i) => {
          const block = Math.floor(Math.floor(i / cols) / blockRows) * across + Math.floor((i % cols) / blockCols);
          const scale = Buffer.from(scales).readFloatLE(4 * block);
          const least = Math.min(...codes.map((code) => Math.abs(code * scale - value)));
          expect(Math.abs((decoded[i] as number) - value)).toBeLessThanOrEqual(least + Math.abs(value) * 2 ** -22);
        });
      }),
    );
  });

  test('INT4 is within half a step', () => {
    fc.assert(
      fc.property(matrix, ({ values, shape: { rows, cols, blockCols: groupSize } }) => {
        const { packed, scales } = packInt4(values, rows, cols, groupSize);
        const decoded = decodeAll(int4({ groupSize }, 'BF16'), rows, cols, packed, scales);
        const steps = new Float32Array(scales.length / 2);
        decodeFloats('BF16', scales, steps);
        values.forEach((value, i) => {
          const step = steps[
            Math.floor(i / cols) * Math.ceil(cols / groupSize) + Math.floor((i % cols) / groupSize)
          ] as number;
          expect(Math.abs((decoded[i] as number) - value)).toBeLessThanOrEqual((step / 2) * (1 + 2 ** -20));
        });
      }),
    );
  });
});

test('blocks without rows or columns are refused', () => {
  const encoding: Encoding = { kind: 'codes', dtype: 'F8_E4M3', scaleDtype: 'F32', blockRows: 0, blockCols: 128 };
  expect(() => storedBytes(encoding, 1, 1)).toThrow(/rows of a block/);
  expect(() => storedBytes(int4({ groupSize: 0.5 }, 'BF16'), 1, 1)).toThrow(/cols of a block/);
});

test('stored bytes of the matrices of known models', () => {
  // DeepSeek-V3: gate_proj.weight [2048, 7168] and its weight_scale_inv [16, 56]; kv_a_proj_with_mqa [576, 7168], [5, 56].
  const deepseek: Encoding = { kind: 'codes', dtype: 'F8_E4M3', scaleDtype: 'F32', blockRows: 128, blockCols: 128 };
  expect(storedBytes(deepseek, 2048, 7168)).toEqual({ data: 2048 * 7168, scales: 4 * 16 * 56 });
  expect(storedBytes(deepseek, 576, 7168)).toEqual({ data: 576 * 7168, scales: 4 * 5 * 56 });
  // Kimi-K2-Thinking: gate_proj.weight_packed [2048, 896] I32 and its weight_scale [2048, 224] BF16.
  const kimi: Encoding = int4({ groupSize: 32 }, 'BF16');
  expect(storedBytes(kimi, 2048, 7168)).toEqual({ data: 4 * 2048 * 896, scales: 2 * 2048 * 224 });
  expect(storedBytes({ kind: 'float', dtype: 'BF16' }, 3, 5)).toEqual({ data: 30, scales: 0 });
});

test('floats decode as before', () => {
  const values = Float32Array.of(1, -2.5, 0, 3);
  expect(decodeAll({ kind: 'float', dtype: 'F16' }, 2, 2, encodeFloats('F16', values), new Uint8Array())).toEqual(
    values,
  );
});

test('encodings are named for people', () => {
  expect(describeEncoding({ kind: 'float', dtype: 'BF16' })).toBe('BF16');
  expect(describeEncoding({ kind: 'codes', dtype: 'F8_E4M3', scaleDtype: 'F32', blockRows: 128, blockCols: 128 })).toBe(
    'F8_E4M3 in 128 × 128 blocks',
  );
  expect(describeEncoding(int4({ groupSize: 32 }, 'BF16'))).toBe('INT4 in groups of 32');
});
