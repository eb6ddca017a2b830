import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { numberSequence } from '../../fixtures/number-sequence.js';
import { fp8Encoder, packInt4, quantiseFp8 } from '../../fixtures/quantise.js';
import { OverflowError } from '../errors.js';
import { floatsOf } from './codec.js';
import { canEncode, codesOf, encodeMatrix, roundScale, SCALE_SHARES } from './encode-matrix.js';
import { decodeRows, type Encoding, type ScaleDtype, type StoredEncoding, storedBytes } from './encoding.js';
import { decodeScales, SCALE_DTYPES } from './encodings/block-scales.js';
import { float8Values } from './float8.js';

type Coded = Exclude<StoredEncoding, { kind: 'float' | 'gptq' | 'awq' }>;

const codes = (
  dtype: 'I8' | 'F8_E4M3' | 'F8_E5M2',
  blockRows: number,
  blockCols: number,
  scaleDtype: ScaleDtype,
  powersOfTwo?: true,
) => ({ kind: 'codes', dtype, scaleDtype, blockRows, blockCols, powersOfTwo }) as const;
const scaleRules = (encoding: Coded) => ({
  dtype: encoding.scaleDtype,
  powersOfTwo: encoding.kind === 'codes' && encoding.powersOfTwo,
});
const packed = (bits: number, groupSize: number, scaleDtype: ScaleDtype = 'BF16') =>
  ({ kind: 'packed', bits, scaleDtype, groupSize, zeroRows: 0, reordered: false }) as const;
const fp4 = (groupSize: number, scaleDtype: ScaleDtype = 'F8_E8M0') =>
  ({ kind: 'fp4', scaleDtype, groupSize, matrixScale: 'none' }) as const;

/** e8m0 scales with integers are not met, but nothing forbids them. */
const encodings = fc.oneof(
  fc
    .record({
      dtype: fc.constantFrom('I8', 'F8_E4M3', 'F8_E5M2'),
      rows: fc.integer({ min: 1, max: 9 }),
      cols: fc.integer({ min: 1, max: 20 }),
      scale: fc.constantFrom('F32', 'F16', 'BF16', 'F8_E8M0'),
      powers: fc.constantFrom(undefined, true as const),
    })
    .map(({ dtype, rows, cols, scale, powers }) => codes(dtype as 'I8', rows, cols, scale as ScaleDtype, powers)),
  fc
    .record({
      bits: fc.integer({ min: 1, max: 8 }),
      group: fc.integer({ min: 1, max: 40 }),
      scale: fc.constantFrom('F32', 'F16', 'BF16'),
    })
    .map(({ bits, group, scale }) => packed(bits, group, scale as ScaleDtype)),
  fc
    .record({ group: fc.integer({ min: 1, max: 40 }), scale: fc.constantFrom('F8_E8M0', 'F8_E4M3', 'F32') })
    .map(({ group, scale }) => fp4(group, scale as ScaleDtype)),
) as fc.Arbitrary<Coded>;

const matrices = fc
  .record({
    encoding: encodings,
    rows: fc.integer({ min: 1, max: 12 }),
    cols: fc.integer({ min: 1, max: 45 }),
    seed: fc.integer({ min: 1, max: 2 ** 31 }),
    size: fc.constantFrom(1e-3, 1, 100),
  })
  .map((it) => ({ ...it, values: randomMatrix(it) }));

function randomMatrix({ rows, cols, seed, size }: { rows: number; cols: number; seed: number; size: number }) {
  const next = numberSequence(seed);
  return Float32Array.from({ length: rows * cols }, (_, i) => {
    const number = next();
    return number % 11 === 0 ? 0 : ((number >>> 8) / 2 ** 24 - 0.5) * size * 2 ** -((i * 7) % 5);
  });
}

const hasIntegers = (encoding: Coded): boolean =>
  encoding.kind === 'packed' || (encoding.kind === 'codes' && encoding.dtype === 'I8');

/** Rows and columns of a block. */
const blockOf = (encoding: Coded): [rows: number, cols: number] =>
  encoding.kind === 'codes' ? [encoding.blockRows, encoding.blockCols] : [1, encoding.groupSize];

/** For each value, the index of its block. */
function blockIndices(encoding: Coded, rows: number, cols: number): number[] {
  const [height, width] = blockOf(encoding);
  return Array.from(
    { length: rows * cols },
    (_, i) => Math.floor(Math.floor(i / cols) / height) * Math.ceil(cols / width) + Math.floor((i % cols) / width),
  );
}

function decode(encoding: Encoding, rows: number, cols: number, bytes: Uint8Array): Float32Array {
  const { data } = storedBytes(encoding, rows, cols);
  const values = new Float32Array(rows * cols);
  decodeRows(encoding, cols, { first: 0, count: rows }, bytes.subarray(0, data), bytes.subarray(data), values);
  return values;
}

const scalesIn = (encoding: Coded, rows: number, cols: number, bytes: Uint8Array): Float32Array =>
  decodeScales(encoding.scaleDtype, bytes.subarray(storedBytes(encoding, rows, cols).data));

/** Every value that a code of the encoding can have, by decoding each. */
function gridOf(encoding: Coded): number[] {
  const bits = encoding.kind === 'codes' ? 8 : encoding.kind === 'fp4' ? 4 : encoding.bits;
  const it = encoding.kind === 'codes' ? { ...encoding, blockRows: 1, blockCols: 1 } : { ...encoding, groupSize: 1 };
  const single = { ...it, scaleDtype: 'F32' } as Coded;
  return Array.from({ length: 2 ** bits }, (_, code) => {
    const bytes = new Uint8Array(storedBytes(single, 1, 1).data + 4);
    bytes[0] = code;
    bytes.set(new Uint8Array(Float32Array.of(1).buffer), bytes.length - 4);
    return decode(single, 1, 1, bytes)[0] as number;
  })
    .filter(Number.isFinite)
    .sort((a, b) => a - b);
}

const nearestError = (grid: readonly number[], scale: number, value: number): number =>
  Math.min(...grid.map((code) => Math.abs(code * scale - value)));

/** The scale of each block that makes its largest magnitude `share` times the largest code, as the definition has it. */
function scalesFor(encoding: Coded, rows: number, cols: number, values: Float32Array, share: number): Float32Array {
  const largest = codesOf(encoding).grid.largest;
  const blocks = blockIndices(encoding, rows, cols);
  const scales = new Float32Array(Math.max(...blocks) + 1);
  values.forEach((value, i) => {
    scales[blocks[i] as number] = Math.max(scales[blocks[i] as number] as number, Math.abs(value));
  });
  return scales.map((most) => roundScale(scaleRules(encoding), most === 0 ? 1 : Math.fround((most / largest) * share)));
}

describe('a matrix that is encoded', () => {
  test('decodes to the nearest value that a code can have, each value of it', () => {
    fc.assert(
      fc.property(matrices, ({ encoding, rows, cols, values }) => {
        const bytes = encodeMatrix(encoding, rows, cols, values, 'x');
        const decoded = decode(encoding, rows, cols, bytes);
        const scales = scalesIn(encoding, rows, cols, bytes);
        const blocks = blockIndices(encoding, rows, cols);
        const grid = gridOf(encoding);
        const far = values.findIndex((value, i) => {
          const scale = scales[blocks[i] as number] as number;
          const error = Math.abs((decoded[i] as number) - value);
          return !(error <= nearestError(grid, scale, value) + Math.abs(value) * 2 ** -21);
        });
        expect(far).toBe(-1);
      }),
    );
  });

  test('is within half a step of an integer code inside its range, and at its end outside', () => {
    const integers = matrices.filter(({ encoding }) => hasIntegers(encoding));
    fc.assert(
      fc.property(integers, fc.constantFrom(...SCALE_SHARES), ({ encoding, rows, cols, values }, share) => {
        const scales = scalesFor(encoding, rows, cols, values, share);
        const decoded = decode(encoding, rows, cols, encodeMatrix(encoding, rows, cols, values, 'x', scales));
        const blocks = blockIndices(encoding, rows, cols);
        const bits = encoding.kind === 'packed' ? encoding.bits : 8;
        const far = values.findIndex((value, i) => {
          const scale = scales[blocks[i] as number] as number;
          const [low, high] = [-(2 ** (bits - 1)) * scale, (2 ** (bits - 1) - 1) * scale];
          const expected = Math.min(high, Math.max(low, value));
          const bound = expected === value ? (scale / 2) * (1 + 2 ** -14) : scale * 2 ** -14;
          return !(Math.abs((decoded[i] as number) - expected) <= bound);
        });
        expect(far).toBe(-1);
      }),
    );
  });

  test('has the scales whose squared error is the least of those that are tried', () => {
    fc.assert(
      fc.property(matrices, ({ encoding, rows, cols, values }) => {
        const blocks = blockIndices(encoding, rows, cols);
        const errors = (bytes: Uint8Array): number[] => {
          const sums: number[] = [];
          decode(encoding, rows, cols, bytes).forEach((it, i) => {
            const block = blocks[i] as number;
            sums[block] = (sums[block] ?? 0) + (it - (values[i] as number)) ** 2;
          });
          return sums;
        };
        const found = errors(encodeMatrix(encoding, rows, cols, values, 'x'));
        for (const share of SCALE_SHARES) {
          const scales = scalesFor(encoding, rows, cols, values, share);
          const others = errors(encodeMatrix(encoding, rows, cols, values, 'x', scales));
          // Decoding rounds to f32; the search does not.
          expect(others.findIndex((other, i) => !((found[i] as number) <= other * 1.0001 + 1e-12))).toBe(-1);
        }
      }),
    );
  });

  test('keeps its bytes when it is decoded and encoded with its scales', () => {
    fc.assert(
      fc.property(matrices, ({ encoding, rows, cols, values }) => {
        const bytes = encodeMatrix(encoding, rows, cols, values, 'x');
        const again = encodeMatrix(
          encoding,
          rows,
          cols,
          decode(encoding, rows, cols, bytes),
          'x',
          scalesIn(encoding, rows, cols, bytes),
        );
        // Integers have no −0, which floats can lose in a product.
        expect(decode(encoding, rows, cols, again)).toEqual(decode(encoding, rows, cols, bytes));
        expect(again).toEqual(bytes);
      }),
    );
  });
});

describe('the codes are those of code that was compared with PyTorch and compressed-tensors:', () => {
  test.each([
    [130, 150, 128, 128],
    [5, 37, 1, 37],
    [3, 64, 1, 32],
  ])('FP8 of %i × %i in blocks of %i × %i', (rows, cols, blockRows, blockCols) => {
    for (const dtype of ['F8_E4M3', 'F8_E5M2'] as const) {
      const values = randomMatrix({ rows, cols, seed: 3, size: 1 });
      const expected = quantiseFp8(values, rows, cols, blockRows, blockCols, dtype);
      const bytes = encodeMatrix(
        codes(dtype, blockRows, blockCols, 'F32'),
        rows,
        cols,
        values,
        'x',
        floatsOf('F32', expected.scales),
      );
      expect(bytes).toEqual(new Uint8Array([...expected.data, ...expected.scales]));
    }
  });

  test('INT4 in groups of 32', () => {
    const [rows, cols] = [7, 70];
    const values = randomMatrix({ rows, cols, seed: 5, size: 1 });
    const expected = packInt4(values, rows, cols, 32);
    const bytes = encodeMatrix(packed(4, 32), rows, cols, values, 'x', floatsOf('BF16', expected.scales));
    expect(bytes).toEqual(new Uint8Array([...expected.packed, ...expected.scales]));
  });
});

describe('scales that must be powers of two', () => {
  const LARGEST = 448;

  test('are those of DeepGEMM, 2^⌈log2(largest / 448)⌉, or half of them where clipping costs less', () => {
    const [rows, cols, blockRows, blockCols] = [24, 40, 8, 16];
    const values = randomMatrix({ rows, cols, seed: 11, size: 3 });
    // In some blocks one value is far above the others, and just above a power of two times 448.
    values.set([LARGEST * 2 ** -3 * 1.02], 0);
    values.set([LARGEST * 2 ** -4 * 1.01], 8 * cols + 20);
    const encoding = codes('F8_E4M3', blockRows, blockCols, 'F32', true);
    const bytes = encodeMatrix(encoding, rows, cols, values, 'x');
    const found = scalesIn(encoding, rows, cols, bytes);
    const blocks = blockIndices(encoding, rows, cols);
    const encode = fp8Encoder('F8_E4M3');
    const numbers = float8Values('F8_E4M3');
    let halved = 0;
    found.forEach((scale, block) => {
      const own = values.filter((_, i) => blocks[i] === block);
      const whole = 2 ** Math.ceil(Math.log2(Math.max(...own.map(Math.abs)) / LARGEST));
      const error = (tried: number): number =>
        own.reduce((sum, value) => sum + ((numbers[encode(value / tried)] as number) * tried - value) ** 2, 0);
      expect([whole, whole / 2]).toContain(scale);
      expect(error(scale)).toBeLessThanOrEqual(Math.min(error(whole), error(whole / 2)) * (1 + 1e-6));
      if (scale < whole) halved++;
    });
    expect(halved).toBeGreaterThan(0);
    expect(halved).toBeLessThan(found.length);
  });

  test('are given as such, or refused', () => {
    const encoding = codes('F8_E4M3', 1, 2, 'F32', true);
    const encode = (scale: number) => encodeMatrix(encoding, 1, 2, Float32Array.of(3, 1), 'x', Float32Array.of(scale));
    expect(encode(0.25)).toHaveLength(6);
    expect(() => encode(0.3)).toThrow(/no power of two in F32/);
  });
});

describe('values that cannot be encoded', () => {
  test('NaN and infinities are refused, and the tensor is named', () => {
    const bad = fc.constantFrom(Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY);
    fc.assert(
      fc.property(matrices, bad, fc.nat(), fc.boolean(), ({ encoding, rows, cols, values }, it, at, given) => {
        const scales = given ? scalesFor(encoding, rows, cols, values, 1) : undefined;
        values[at % values.length] = it;
        expect(() => encodeMatrix(encoding, rows, cols, values, 'a.weight', scales)).toThrow(OverflowError);
        expect(() => encodeMatrix(encoding, rows, cols, values, 'a.weight', scales)).toThrow(/"a\.weight"/);
      }),
    );
    expect(() => encodeMatrix({ kind: 'float', dtype: 'BF16' }, 1, 1, Float32Array.of(Number.NaN), 'a')).toThrow(
      OverflowError,
    );
  });

  test('so are values whose scale is too large for its dtype', () => {
    const encode = (value: number, scaleDtype: ScaleDtype) =>
      encodeMatrix(packed(4, 2, scaleDtype), 1, 2, Float32Array.of(value, 1), 'a');
    expect(() => encode(65504 * 7 * 1.01, 'F16')).toThrow(OverflowError);
    expect(() => encode(448 * 7 * 1.01, 'F8_E4M3')).toThrow(OverflowError);
    expect(() => encode(448 * 7 * 1.01, 'F8_E4M3')).toThrow(/INT4 in groups of 2: .* no --keep-quantized/);
    expect(encode(448 * 7, 'F8_E4M3')).toHaveLength(5);
    expect(() => encode(65504 * 7, 'F16')).not.toThrow();
  });

  test('numbers too small for their scale become 0, and blocks of zeros have scale 1', () => {
    const encoding = packed(4, 2, 'F16');
    const bytes = encodeMatrix(encoding, 1, 4, Float32Array.of(1e-30, -1e-30, 0, 0), 'a');
    expect(decode(encoding, 1, 4, bytes)).toEqual(new Float32Array(4));
    expect([...scalesIn(encoding, 1, 4, bytes)]).toEqual([2 ** -24, 1]);
  });
});

describe('mistakes of a caller are refused:', () => {
  const values = new Float32Array(4);
  test.each<[string, Encoding]>([
    ['zero points', { ...packed(4, 2), zeroRows: 1 }],
    ['another order', { ...packed(4, 2), reordered: true }],
    ['NVFP4', { ...fp4(2, 'F8_E4M3'), matrixScale: 'multiplies' }],
    ['AWQ', { kind: 'awq', scaleDtype: 'F16', groups: 1, groupSize: 2 }],
    [
      'GPTQ',
      { kind: 'gptq', bits: 4, scaleDtype: 'F16', groups: 1, groupSize: 2, zerosLessOne: true, reordered: false },
    ],
  ])('%s', (_, encoding) => {
    expect(canEncode(encoding)).toBe(false);
    expect(() => encodeMatrix(encoding as StoredEncoding, 1, 4, values, 'a')).toThrow(RangeError);
  });

  test('scales that are not exact in their dtype, and sizes that do not fit', () => {
    const encode = (...scales: number[]) => encodeMatrix(packed(4, 2), 1, 4, values, 'a', Float32Array.from(scales));
    expect(() => encode(1, 1.001)).toThrow(/no BF16/);
    expect(() => encode(1)).toThrow(/1 scales/);
    expect(() => encodeMatrix(packed(4, 2), 2, 4, values, 'a')).toThrow(/4 numbers/);
    expect(encode(1, 0)).toHaveLength(8);
  });
});

describe('the values of codes', () => {
  test.each<[string, Coded]>([
    ['I8', codes('I8', 1, 1, 'F32')],
    ['E4M3', codes('F8_E4M3', 1, 1, 'F32')],
    ['E5M2', codes('F8_E5M2', 1, 1, 'F32')],
    ['E2M1', fp4(1)],
    ...Array.from({ length: 8 }, (_, i): [string, Coded] => [`INT${i + 1}`, packed(i + 1, 1)]),
  ])('of %s are rounded to the nearest, ties to even', (_, encoding) => {
    const { grid } = codesOf(encoding);
    const all = [...new Set(gridOf(encoding))];
    for (const value of all) expect(grid.round(value) + 0).toBe(value + 0);
    expect(grid.round(1e9)).toBe(Math.max(...all));
    expect(grid.round(-1e9)).toBe(Math.min(...all));
    const even = (value: number): boolean => {
      if (hasIntegers(encoding)) return value % 2 === 0;
      return all.filter((it) => it >= 0).indexOf(Math.abs(value)) % 2 === 0;
    };
    all.slice(1).forEach((above, i) => {
      const below = all[i] as number;
      const middle = (below + above) / 2;
      expect(grid.round(middle) + 0).toBe((even(below) ? below : above) + 0);
      expect(grid.round(middle + (above - below) / 64) + 0).toBe(above + 0);
      expect(grid.round(middle - (above - below) / 64) + 0).toBe(below + 0);
    });
  });

  test('largest codes are those of the formats', () => {
    expect(codesOf(codes('F8_E4M3', 1, 1, 'F32')).grid.largest).toBe(448);
    expect(codesOf(fp4(32)).grid.largest).toBe(6);
    expect([1, 2, 4, 8].map((bits) => codesOf(packed(bits, 64)).grid.largest)).toEqual([1, 1, 7, 127]);
  });
});

test('scales are rounded to their dtype, and positive ones never to 0', () => {
  const floats = fc.float({ min: Math.fround(1e-40), max: 400, noNaN: true });
  fc.assert(
    fc.property(fc.constantFrom(...SCALE_DTYPES), floats, (dtype, scale) => {
      const rounded = roundScale({ dtype }, scale);
      expect(rounded).toBeGreaterThan(0);
      expect(roundScale({ dtype }, rounded)).toBe(rounded);
      if (dtype === 'F32') expect(rounded).toBe(scale);
      if (scale < 2 ** -6) return;
      if (dtype === 'F8_E8M0') {
        expect(rounded).toBeGreaterThanOrEqual(scale);
        expect(rounded).toBeLessThan(2 * scale);
      } else expect(Math.abs(rounded - scale)).toBeLessThanOrEqual(scale * 2 ** -4);
    }),
  );
});

test('powers of two are the least that are not below a scale', () => {
  const floats = fc.float({ min: 2 ** -149, max: 2 ** 127, noNaN: true });
  fc.assert(
    fc.property(floats, (scale) => {
      const rounded = roundScale({ dtype: 'F32', powersOfTwo: true }, scale);
      expect(Number.isInteger(Math.log2(rounded))).toBe(true);
      expect(rounded).toBeGreaterThanOrEqual(scale);
      expect(rounded).toBeLessThan(2 * scale);
    }),
    { examples: [[2 ** -149], [3 * 2 ** -149], [2 ** -126], [2 ** -126 - 2 ** -149], [2 ** 127]] },
  );
  expect(roundScale({ dtype: 'F32', powersOfTwo: true }, 1.5 * 2 ** 127)).toBe(Number.POSITIVE_INFINITY);
});
