/** Checks properties that all encodings share, and compares decoded numbers with those of other programs. */
import { readFileSync } from 'node:fs';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { numberSequence, SCALE_PATTERNS, sha256Floats } from '../../../fixtures/number-sequence.js';
import { QUANTISED_FORMATS } from '../../../fixtures/paths.js';
import { decodeFloats } from '../codec.js';
import {
  decodeRows,
  describeEncoding,
  type Encoding,
  encodingSchema,
  rowSpan,
  type ScaleDtype,
  type StoredEncoding,
  scaleFault,
  storedBytes,
} from '../encoding.js';
import { type Float8Dtype, float8Values } from '../float8.js';
import { decodeScales } from './block-scales.js';

interface Case {
  rows: number;
  cols: number;
  seed: number;
  scaleDtype: ScaleDtype;
  /** sha256 of the f32 of (out, in) */
  values: string;
}

/** See fixtures/quantised-formats.py for what it holds. */
const reference: {
  tables: Record<Float8Dtype | 'E2M1', string>;
  codes: (Case & { dtype: 'I8' | 'F8_E4M3'; blockRows: number; blockCols: number })[];
  fp4: (Case & { groupSize: number; matrixScale: 'none' | 'multiplies' | 'divides' })[];
  packed: (Case & { bits: number; groupSize: number; asymmetric: boolean; reordered: boolean })[];
  gptq: (Case & { bits: 2 | 3 | 4 | 8; groupSize: number; zerosLessOne: boolean; reordered: boolean })[];
  awq: (Case & { groupSize: number })[];
} = JSON.parse(readFileSync(QUANTISED_FORMATS, 'utf8'));

/** Bytes made from the generator's numbers in their order. */
class Parts {
  private readonly next: () => number;
  constructor(seed: number) {
    this.next = numberSequence(seed);
  }
  fill(count: number, bytes: number, pattern: (x: number) => number): Buffer {
    const buffer = Buffer.alloc(count * bytes);
    for (let i = 0; i < count; i++) buffer.writeUIntLE(pattern(this.next()) >>> 0, i * bytes, bytes);
    return buffer;
  }
  bytes = (count: number): Buffer => this.fill(count, 1, (x) => x >>> 24);
  words = (count: number): Buffer => this.fill(count, 4, (x) => x);
  scales = (dtype: ScaleDtype, count: number): Buffer => this.fill(count, ...SCALE_PATTERNS[dtype]);
  groups = (count: number, groups: number): Buffer => this.fill(count, 4, (x) => (x >>> 8) % groups);
}

/** (in, out), as GPTQ and AWQ store a matrix, seen as (out, in). */
const turned = (of: StoredEncoding, { rows, cols }: Case): Encoding => ({
  kind: 'view',
  of,
  rows,
  cols,
  first: 0,
  step: 1,
  transposed: true,
});

function decodeAll(encoding: Encoding, rows: number, cols: number, data: Uint8Array, scales: Uint8Array): Float32Array {
  const sizes = storedBytes(encoding, rows, cols);
  expect({ data: data.length, scales: scales.length }).toEqual(sizes);
  const values = new Float32Array(rows * cols);
  decodeRows(encoding, cols, { first: 0, count: rows }, data, scales, values);
  return values;
}

describe('decoding equals that of others, bit for bit:', () => {
  test.each(['F8_E4M3', 'F8_E5M2', 'F8_E8M0'] as const)('the codes of %s, by ml_dtypes', (dtype) => {
    const expected = new Float32Array(256);
    decodeFloats('F32', Buffer.from(reference.tables[dtype], 'base64'), expected);
    expect(float8Values(dtype)).toEqual(expected);
  });

  test('the codes of e2m1, by ml_dtypes, the lower half of a byte first', () => {
    const expected = new Float32Array(16);
    decodeFloats('F32', Buffer.from(reference.tables.E2M1, 'base64'), expected);
    const codes = Uint8Array.from({ length: 8 }, (_, i) => 2 * i + 16 * (2 * i + 1));
    const encoding: Encoding = { kind: 'fp4', scaleDtype: 'F8_E8M0', groupSize: 16, matrixScale: 'none' };
    expect(decodeAll(encoding, 1, 16, codes, Uint8Array.of(127))).toEqual(expected);
  });

  test.each(reference.codes)('$dtype $rows × $cols in $blockRows × $blockCols blocks, $scaleDtype', (it) => {
    const { rows, cols, dtype, scaleDtype, blockRows, blockCols } = it;
    const parts = new Parts(it.seed);
    const data = parts.bytes(rows * cols);
    const scales = parts.scales(scaleDtype, Math.ceil(rows / blockRows) * Math.ceil(cols / blockCols));
    const encoding: Encoding = { kind: 'codes', dtype, scaleDtype, blockRows, blockCols };
    expect(sha256Floats(decodeAll(encoding, rows, cols, data, scales))).toBe(it.values);
  });

  test.each(reference.fp4)('FP4 $rows × $cols by $groupSize, $scaleDtype, a matrix scale $matrixScale', (it) => {
    const { rows, cols, scaleDtype, groupSize, matrixScale } = it;
    const parts = new Parts(it.seed);
    const data = parts.bytes((rows * cols) / 2);
    const scales = parts.scales(scaleDtype, (rows * cols) / groupSize);
    const ofMatrix = parts.scales('F32', matrixScale === 'none' ? 0 : 1);
    const encoding: Encoding = { kind: 'fp4', scaleDtype, groupSize, matrixScale };
    expect(sha256Floats(decodeAll(encoding, rows, cols, data, Buffer.concat([scales, ofMatrix])))).toBe(it.values);
  });

  test.each(reference.packed)(
    'INT$bits $rows × $cols by $groupSize, asymmetric $asymmetric, reordered $reordered',
    (it) => {
      const { rows, cols, bits, scaleDtype, groupSize, reordered } = it;
      const groups = cols / groupSize;
      const zeroRows = it.asymmetric ? Math.ceil((rows * bits) / 32) : 0;
      const parts = new Parts(it.seed);
      const data = parts.words(rows * Math.ceil((cols * bits) / 32));
      const scales = [
        parts.scales(scaleDtype, rows * groups),
        parts.words(zeroRows * groups),
        parts.groups(reordered ? cols : 0, groups),
      ];
      const encoding: Encoding = { kind: 'packed', bits, scaleDtype, groupSize, zeroRows, reordered };
      expect(sha256Floats(decodeAll(encoding, rows, cols, data, Buffer.concat(scales)))).toBe(it.values);
    },
  );

  test.each(reference.gptq)('GPTQ INT$bits by $groupSize, zeros less one $zerosLessOne, reordered $reordered', (it) => {
    const { rows, cols, bits, scaleDtype, groupSize, zerosLessOne, reordered } = it;
    const groups = Math.ceil(rows / groupSize);
    const parts = new Parts(it.seed);
    const data = parts.words(((rows * bits) / 32) * cols);
    const scales = [
      parts.scales(scaleDtype, groups * cols),
      parts.words(groups * Math.ceil((cols * bits) / 32)),
      parts.groups(reordered ? rows : 0, groups),
    ];
    const of: StoredEncoding = { kind: 'gptq', bits, scaleDtype, groups, groupSize, zerosLessOne, reordered };
    expect(sha256Floats(decodeAll(turned(of, it), cols, rows, data, Buffer.concat(scales)))).toBe(it.values);
  });

  test.each(reference.awq)('AWQ $rows × $cols by $groupSize, $scaleDtype', (it) => {
    const { rows, cols, scaleDtype, groupSize } = it;
    const groups = rows / groupSize;
    const parts = new Parts(it.seed);
    const data = parts.words((rows * cols) / 8);
    const scales = [parts.scales(scaleDtype, groups * cols), parts.words((groups * cols) / 8)];
    const of: StoredEncoding = { kind: 'awq', scaleDtype, groups, groupSize };
    expect(sha256Floats(decodeAll(turned(of, it), cols, rows, data, Buffer.concat(scales)))).toBe(it.values);
  });
});

const [ROWS, COLS] = [13, 37];

/** Encodings of every kind for a matrix of 13 × 37 or its transpose. Parts of rows begin and end inside their blocks. */
const STORED: StoredEncoding[] = [
  { kind: 'float', dtype: 'F32' },
  { kind: 'float', dtype: 'BF16' },
  { kind: 'codes', dtype: 'F8_E4M3', scaleDtype: 'F32', blockRows: 4, blockCols: 5 },
  { kind: 'codes', dtype: 'F8_E5M2', scaleDtype: 'F8_E8M0', blockRows: 1, blockCols: 32 },
  { kind: 'codes', dtype: 'I8', scaleDtype: 'F16', blockRows: 1, blockCols: 40 },
  { kind: 'fp4', scaleDtype: 'F8_E8M0', groupSize: 8, matrixScale: 'none' },
  { kind: 'fp4', scaleDtype: 'F8_E4M3', groupSize: 6, matrixScale: 'divides' },
  { kind: 'packed', bits: 4, scaleDtype: 'BF16', groupSize: 8, zeroRows: 0, reordered: false },
  { kind: 'packed', bits: 4, scaleDtype: 'F16', groupSize: 3, zeroRows: 0, reordered: false },
  { kind: 'packed', bits: 8, scaleDtype: 'F32', groupSize: 16, zeroRows: 0, reordered: false },
  { kind: 'packed', bits: 5, scaleDtype: 'F32', groupSize: 16, zeroRows: 3, reordered: true },
  { kind: 'gptq', bits: 4, scaleDtype: 'F16', groups: 3, groupSize: 5, zerosLessOne: true, reordered: false },
  { kind: 'gptq', bits: 3, scaleDtype: 'F32', groups: 4, groupSize: 4, zerosLessOne: false, reordered: true },
  { kind: 'awq', scaleDtype: 'BF16', groups: 2, groupSize: 8 },
];

const VIEWS: Encoding[] = STORED.flatMap((of): Encoding[] => [
  { kind: 'view', of, rows: 2 * ROWS + 1, cols: COLS, first: 1, step: 2, transposed: false },
  { kind: 'view', of, rows: COLS, cols: 2 * ROWS, first: 1, step: 2, transposed: true },
])
  .map((view) => view as Extract<Encoding, { kind: 'view' }>)
  // A view has its own sizes, which its scales must fit.
  .map((view) => ({ ...view, of: sized(view.of, view.rows) }));

function sized(of: StoredEncoding, rows: number): StoredEncoding {
  if (of.kind === 'packed' && of.zeroRows) return { ...of, zeroRows: Math.ceil((rows * of.bits) / 32) };
  if (of.kind === 'gptq' || of.kind === 'awq') return { ...of, groups: Math.ceil(rows / of.groupSize) };
  return of;
}

const label = (encoding: Encoding): string =>
  encoding.kind === 'view' ? `${describeEncoding(encoding)}, ${JSON.stringify(encoding)}` : JSON.stringify(encoding);

/** Random bytes that decode to finite numbers. The indices of groups at their end are all in range. */
function sample(encoding: Encoding, rows: number, cols: number) {
  const next = numberSequence(1);
  const sizes = storedBytes(encoding, rows, cols);
  const bytes = (length: number): Uint8Array => Uint8Array.from({ length }, () => (next() >>> 24) & 0x7b);
  const [data, scales] = [bytes(sizes.data), bytes(sizes.scales)];
  const of = encoding.kind === 'view' ? encoding.of : encoding;
  if ((of.kind === 'packed' || of.kind === 'gptq') && of.reordered) {
    const [height, width] = encoding.kind === 'view' ? [encoding.rows, encoding.cols] : [rows, cols];
    const count = of.kind === 'packed' ? width : height;
    const indices = Int32Array.from({ length: count }, () => next() % 2);
    scales.set(new Uint8Array(indices.buffer), scales.length - 4 * count);
  }
  return { data, scales };
}

describe.each([...STORED, ...VIEWS].map((encoding) => [label(encoding), encoding] as const))('%s', (_, encoding) => {
  const { data, scales } = sample(encoding, ROWS, COLS);
  const whole = new Float32Array(ROWS * COLS);
  decodeRows(encoding, COLS, { first: 0, count: ROWS }, ...spanned({ first: 0, count: ROWS }), scales, whole);

  function spanned(rows: { first: number; count: number }): [Uint8Array] {
    const { start, end } = rowSpan(encoding, COLS, rows);
    return [data.subarray(start, end)];
  }

  test('rows decoded in any pieces, at any alignment, are the rows decoded at once', () => {
    const cuts = fc.uniqueArray(fc.integer({ min: 0, max: ROWS }), { minLength: 1, maxLength: 5 });
    fc.assert(
      fc.property(cuts, fc.nat(3), (inner, shift) => {
        const moved = (part: Uint8Array): Uint8Array => {
          const buffer = new Uint8Array(part.length + shift + 1);
          buffer.set(part, shift);
          return buffer.subarray(shift, shift + part.length);
        };
        const decoded = new Float32Array(ROWS * COLS);
        const edges = [0, ...inner.sort((a, b) => a - b), ROWS];
        edges.slice(1).forEach((end, i) => {
          const rows = { first: edges[i] as number, count: end - (edges[i] as number) };
          const target = decoded.subarray(rows.first * COLS, end * COLS);
          decodeRows(encoding, COLS, rows, moved(spanned(rows)[0]), moved(scales), target);
        });
        expect(decoded).toEqual(whole);
      }),
    );
    expect(whole.some((value) => value !== 0)).toBe(true);
  });

  test('bytes or a target of the wrong size are refused', () => {
    const [all] = spanned({ first: 0, count: ROWS });
    const decode = (bytes: Uint8Array, scales: Uint8Array, length = ROWS * COLS, first = 0) => {
      const target = new Float32Array(length);
      return () => decodeRows(encoding, COLS, { first, count: ROWS }, bytes, scales, target);
    };
    const longer = (bytes: Uint8Array): Uint8Array => new Uint8Array(bytes.length + 1);
    expect(decode(all.subarray(1), scales)).toThrow(/bytes of data/);
    expect(decode(longer(all), scales)).toThrow(/bytes of data/);
    expect(decode(all, scales, ROWS * COLS - 1)).toThrow(/target/);
    expect(decode(all, scales, ROWS * COLS + 1)).toThrow(/target/);
    expect(decode(all, scales, ROWS * COLS, -1)).toThrow(/rows.first/);
    expect(decode(all, scales, ROWS * COLS, 0.5)).toThrow(/rows.first/);
    const of = encoding.kind === 'view' ? encoding.of : encoding;
    if (of.kind === 'float') expect(decode(all, longer(scales))).toThrow(/bytes of scales/);
    else expect(decode(all, scales.subarray(1))).toThrow(/bytes of scales/);
  });

  test('rows that there are not are refused', () => {
    const beyond = { first: ROWS, count: ROWS };
    const decode = () => {
      const { start, end } = rowSpan(encoding, COLS, beyond);
      const target = new Float32Array(ROWS * COLS);
      decodeRows(encoding, COLS, beyond, new Uint8Array(end - start), scales, target);
    };
    const of = encoding.kind === 'view' ? encoding : encoding.kind;
    if (of !== 'float') expect(decode).toThrow(RangeError);
  });

  test('it is the same when it comes from another machine', () => {
    expect(encodingSchema.parse(JSON.parse(JSON.stringify(encoding)))).toEqual(encoding);
  });
});

test.each(VIEWS.map((view) => [label(view), view] as const))('a view is the rows it names: %s', (_, encoding) => {
  const view = encoding as Extract<Encoding, { kind: 'view' }>;
  const { of, rows, cols, first, step, transposed } = view;
  const { data, scales } = sample(view, ROWS, COLS);
  const stored = new Float32Array(rows * cols);
  decodeRows(of, cols, { first: 0, count: rows }, data, scales, stored);
  const { start, end } = rowSpan(view, COLS, { first: 0, count: ROWS });
  const viewed = new Float32Array(ROWS * COLS);
  decodeRows(view, COLS, { first: 0, count: ROWS }, data.subarray(start, end), scales, viewed);
  const expected = viewed.map((_, i) => {
    const [row, col] = [first + Math.floor(i / COLS) * step, i % COLS];
    return stored[transposed ? col * cols + row : row * cols + col] as number;
  });
  expect(viewed).toEqual(expected);
});

/** Bits `at` … `at + bits` of little-endian bytes, by whole-number arithmetic. */
function field(bytes: Uint8Array, at: number, bits: number): number {
  const whole = bytes.reduceRight((sum, byte) => (sum << 8n) | BigInt(byte), 0n);
  return Number((whole >> BigInt(at)) & ((1n << BigInt(bits)) - 1n));
}

const anyBytes = (length: number) => fc.uint8Array({ minLength: length, maxLength: length });
/** Bytes of finite f16 numbers. */
const anyScales = (count: number) => anyBytes(2 * count).map((bytes) => bytes.map((it, i) => (i % 2 ? it & 0xbb : it)));

describe('the published formulas, in f64 and rounded once:', () => {
  test('packed integers: (field − zero) · scale, zero points packed along the columns', () => {
    const shape = fc.record({
      bits: fc.integer({ min: 1, max: 8 }),
      rows: fc.integer({ min: 1, max: 9 }),
      cols: fc.integer({ min: 1, max: 40 }),
      groupSize: fc.integer({ min: 1, max: 40 }),
    });
    const sampled = shape.chain((it) => {
      const groups = Math.ceil(it.cols / it.groupSize);
      const stride = 4 * Math.ceil((it.cols * it.bits) / 32);
      const zeroRows = Math.ceil((it.rows * it.bits) / 32);
      return fc.record({
        it: fc.constant({ ...it, groups, stride, zeroRows }),
        data: anyBytes(it.rows * stride),
        scales: anyScales(it.rows * groups),
        zeros: anyBytes(4 * zeroRows * groups),
      });
    });
    fc.assert(
      fc.property(sampled, ({ it: { bits, rows, cols, groupSize, groups, stride, zeroRows }, data, scales, zeros }) => {
        const encoding: Encoding = { kind: 'packed', bits, scaleDtype: 'F16', groupSize, zeroRows, reordered: false };
        const decoded = decodeAll(encoding, rows, cols, data, Buffer.concat([scales, zeros]));
        const factors = decodeScales('F16', scales);
        const expected = decoded.map((_, i) => {
          const [row, col] = [Math.floor(i / cols), i % cols];
          const group = Math.floor(col / groupSize);
          const column = Uint8Array.from(
            { length: 4 * zeroRows },
            (_, byte) => zeros[4 * (Math.floor(byte / 4) * groups + group) + (byte % 4)] as number,
          );
          const value = field(data.subarray(row * stride, (row + 1) * stride), col * bits, bits);
          return (value - field(column, row * bits, bits)) * (factors[row * groups + group] as number);
        });
        expect(decoded).toEqual(expected);
      }),
      { numRuns: 40 },
    );
  });

  test('GPTQ: (field − zero) · scale of the group that g_idx names', () => {
    const shape = fc.record({
      bits: fc.constantFrom(2, 4, 8 as const),
      words: fc.integer({ min: 1, max: 3 }),
      cols: fc.integer({ min: 1, max: 12 }),
      groups: fc.integer({ min: 1, max: 4 }),
      zerosLessOne: fc.boolean(),
    });
    const sampled = shape.chain((it) => {
      const rows = (it.words * 32) / it.bits;
      const zeroStride = 4 * Math.ceil((it.cols * it.bits) / 32);
      return fc.record({
        it: fc.constant({ ...it, rows, zeroStride }),
        data: anyBytes(4 * it.words * it.cols),
        scales: anyScales(it.groups * it.cols),
        // The mask excludes fields of all ones, because the formula does not carry out of them.
        zeros: anyBytes(it.groups * zeroStride).map((bytes) => bytes.map((byte) => byte & 0x66)),
        order: fc.array(fc.nat(it.groups - 1), { minLength: rows, maxLength: rows }),
      });
    });
    fc.assert(
      fc.property(sampled, ({ it: { bits, rows, cols, words, groups, zerosLessOne, zeroStride }, ...parts }) => {
        const { data, scales, zeros, order } = parts;
        const of: StoredEncoding = {
          kind: 'gptq',
          bits: bits as 2 | 4 | 8,
          scaleDtype: 'F16',
          groups,
          groupSize: Math.ceil(rows / groups),
          zerosLessOne,
          reordered: true,
        };
        const behind = Buffer.concat([scales, zeros, new Uint8Array(Int32Array.from(order).buffer)]);
        const view: Encoding = { kind: 'view', of, rows, cols, first: 0, step: 1, transposed: true };
        const decoded = decodeAll(view, cols, rows, data, behind);
        const factors = decodeScales('F16', scales);
        const expected = decoded.map((_, i) => {
          const [out, row] = [Math.floor(i / rows), i % rows];
          const group = order[row] as number;
          const column = Uint8Array.from(
            { length: 4 * words },
            (_, byte) => data[4 * (Math.floor(byte / 4) * cols + out) + (byte % 4)] as number,
          );
          const zero = field(zeros.subarray(group * zeroStride, (group + 1) * zeroStride), out * bits, bits);
          const value = field(column, row * bits, bits) - zero - Number(zerosLessOne);
          return value * (factors[group * cols + out] as number);
        });
        expect(decoded).toEqual(expected);
      }),
      { numRuns: 60 },
    );
  });

  test('AWQ: the columns of a word are 0 2 4 6 1 3 5 7', () => {
    const word = [0, 2, 4, 6, 1, 3, 5, 7].reduce((sum, column, i) => sum + column * 16 ** i, 0);
    const of: StoredEncoding = { kind: 'awq', scaleDtype: 'F32', groups: 1, groupSize: 2 };
    const data = Buffer.alloc(8);
    data.writeUInt32LE(word, 0);
    const scales = Buffer.concat([new Uint8Array(new Float32Array(8).fill(1).buffer), Buffer.alloc(4)]);
    const values = new Float32Array(16);
    decodeRows(of, 8, { first: 0, count: 2 }, data, scales, values);
    expect([...values]).toEqual([0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 0, 0, 0, 0, 0, 0]);
  });

  test('NVFP4: code · (scale · factor), and code · (scale ÷ divisor)', () => {
    const codes = Uint8Array.from({ length: 8 }, (_, i) => 2 * i + 16 * (2 * i + 1));
    const scale = 0x45; // 2^1 · 13/8
    for (const [matrixScale, factor] of [
      ['multiplies', 0.3],
      ['divides', 700],
    ] as const) {
      const ofMatrix = Float32Array.of(factor);
      const encoding: Encoding = { kind: 'fp4', scaleDtype: 'F8_E4M3', groupSize: 16, matrixScale };
      const scales = Buffer.concat([Uint8Array.of(scale), new Uint8Array(ofMatrix.buffer)]);
      const rounded = ofMatrix[0] as number;
      const each = Math.fround(matrixScale === 'divides' ? 3.25 / rounded : 3.25 * rounded);
      const table = [0, 0.5, 1, 1.5, 2, 3, 4, 6];
      const expected = [...table, ...table.map((it) => -it)].map((it) => Math.fround(it * each));
      expect([...decodeAll(encoding, 1, 16, codes, scales)]).toEqual(expected);
    }
  });
});

test('indices of groups that there are not are found', () => {
  const encoding: Encoding = {
    kind: 'packed',
    bits: 4,
    scaleDtype: 'BF16',
    groupSize: 8,
    zeroRows: 0,
    reordered: true,
  };
  const scales = new Uint8Array(storedBytes(encoding, 2, 16).scales);
  expect(scaleFault(encoding, 2, 16, scales)).toBeUndefined();
  scales[scales.length - 4] = 2;
  expect(scaleFault(encoding, 2, 16, scales)).toBe('its g_idx names group 2, it has 2');
  scales.fill(255, scales.length - 4);
  expect(scaleFault(encoding, 2, 16, scales)).toBe('its g_idx names group -1, it has 2');
});

test('encodings are named for people', () => {
  const names = STORED.map(describeEncoding);
  expect(names).toContain('I8 in 1 × 40 blocks');
  expect(names).toContain('MXFP4 in groups of 8');
  expect(names).toContain('NVFP4 in groups of 6');
  expect(names).toContain('asymmetric INT5 in groups of 16');
  expect(names).toContain('GPTQ INT4 in groups of 5');
  expect(names).toContain('AWQ INT4 in groups of 8');
});
