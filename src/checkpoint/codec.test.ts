import { getFloat16, setFloat16 } from '@petamoriken/float16';
import fc from 'fast-check';
import { describe, expect, test } from 'vitest';
import { allFinite, decodeFloats, encodeFloats } from './codec.js';

const decodeOne = (dtype: 'F16' | 'BF16', pattern: number): number => {
  const value = new Float32Array(1);
  decodeFloats(dtype, new Uint8Array(Uint16Array.of(pattern).buffer), value);
  return value[0] as number;
};
const encodeOne = (dtype: 'F16' | 'BF16', value: number): number =>
  new Uint16Array(encodeFloats(dtype, Float32Array.of(value)).buffer)[0] as number;

describe('f16', () => {
  const view = new DataView(new ArrayBuffer(2));

  test('decodes all 65536 patterns as an independent library does', () => {
    for (let pattern = 0; pattern < 65536; pattern++) {
      view.setUint16(0, pattern, true);
      const expected = getFloat16(view, 0, true);
      if (!Object.is(decodeOne('F16', pattern), expected))
        expect([pattern, decodeOne('F16', pattern)]).toEqual([pattern, expected]);
    }
  });

  test('encodes as an independent library does, ties, subnormals and overflow included', () => {
    const check = (value: number): void => {
      setFloat16(view, 0, value, true);
      const expected = view.getUint16(0, true);
      if (encodeOne('F16', value) !== expected) expect([value, encodeOne('F16', value)]).toEqual([value, expected]);
    };
    for (let pattern = 0; pattern < 0x7c00; pattern++) {
      const value = decodeOne('F16', pattern);
      const halfway = (value + decodeOne('F16', pattern + 1)) / 2;
      for (const it of [value, halfway, Math.fround(halfway * (1 + 2 ** -20)), Math.fround(halfway * (1 - 2 ** -20))]) {
        if (Number.isFinite(it)) for (const signed of [it, -it]) check(Math.fround(signed));
      }
    }
    for (const value of [0, -0, 65504, 65519.99, 65520, 1e30, Number.POSITIVE_INFINITY, 2 ** -25, 2 ** -26, 1e-45]) {
      check(Math.fround(value));
    }
    expect(encodeOne('F16', Number.NaN) & 0x7fff).toBeGreaterThan(0x7c00);
  });
});

describe('bf16', () => {
  test('every finite pattern survives a round trip', () => {
    for (let pattern = 0; pattern < 65536; pattern++) {
      if ((pattern & 0x7f80) !== 0x7f80) expect(encodeOne('BF16', decodeOne('BF16', pattern))).toBe(pattern);
    }
  });

  test('rounds to the nearest, ties to even', () => {
    fc.assert(
      fc.property(
        fc.float({ noNaN: true, noDefaultInfinity: true, max: Math.fround(1e38), min: Math.fround(-1e38) }),
        (value) => {
          const pattern = encodeOne('BF16', value);
          const rounded = decodeOne('BF16', pattern);
          const [below, above] = [decodeOne('BF16', pattern - 1), decodeOne('BF16', (pattern + 1) & 0xffff)];
          const error = Math.abs(rounded - value);
          for (const neighbour of [below, above].filter(Number.isFinite)) {
            const other = Math.abs(neighbour - value);
            expect(error < other || (error === other && pattern % 2 === 0) || neighbour === rounded).toBe(true);
          }
        },
      ),
    );
  });

  test('keeps NaN and infinity', () => {
    expect(decodeOne('BF16', encodeOne('BF16', Number.NaN))).toBeNaN();
    expect(decodeOne('BF16', encodeOne('BF16', Number.NEGATIVE_INFINITY))).toBe(Number.NEGATIVE_INFINITY);
    expect(encodeOne('BF16', 3.4e38)).toBe(0x7f80);
  });
});

test('unaligned bytes decode like aligned ones', () => {
  const bytes = new Uint8Array(9);
  bytes.set(new Uint8Array(Float32Array.of(1.5, -2).buffer), 1);
  const values = new Float32Array(2);
  decodeFloats('F32', bytes.subarray(1), values);
  expect([...values]).toEqual([1.5, -2]);
});

test.each(['F32', 'F16', 'BF16'] as const)('allFinite notices NaN and infinity in %s', (dtype) => {
  const finite = (...values: number[]): boolean => allFinite(dtype, encodeFloats(dtype, Float32Array.from(values)));
  expect(finite(0, -1, 1e4)).toBe(true);
  expect(finite(0, Number.NaN)).toBe(false);
  expect(finite(Number.NEGATIVE_INFINITY, 1)).toBe(false);
});

test.each(['BF16', 'F16'] as const)(
  '%s: many at once decode as one at a time, at every length and alignment',
  (dtype) => {
    const patterns = Uint16Array.from({ length: 41 }, (_, i) => (i * 40_503) % 65_536);
    for (let count = 0; count <= patterns.length; count++) {
      for (const shift of [0, 1, 2, 3]) {
        const bytes = new Uint8Array(shift + 2 * count);
        bytes.set(new Uint8Array(patterns.buffer, 0, 2 * count), shift);
        const values = new Float32Array(count);
        decodeFloats(dtype, bytes.subarray(shift), values);
        expect(values).toEqual(Float32Array.from(patterns.subarray(0, count), (pattern) => decodeOne(dtype, pattern)));
      }
    }
  },
);

test('encodes into memory that is lent as into its own', () => {
  const values = Float32Array.of(1, -2.5, 3e-5, 7);
  for (const dtype of ['F32', 'F16', 'BF16'] as const) {
    const lent = new Uint8Array(64).fill(255);
    const bytes = encodeFloats(dtype, values, lent);
    expect(bytes.buffer).toBe(lent.buffer);
    expect([...bytes]).toEqual([...encodeFloats(dtype, values)]);
    expect(lent[bytes.byteLength]).toBe(255);
  }
});
