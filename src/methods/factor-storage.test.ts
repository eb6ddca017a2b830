import { describe, expect, test } from 'vitest';
import { columnsOf, type FactorDtype, factorParts, packedBits, QUANTISED_NAMES } from '../checkpoint/factor-dtype.js';
import { OverflowError } from '../errors.js';
import { createRandom } from '../linalg/random.js';
import { decodeFactors, encodeFactor, partsOf, type StoredFactor } from './factor-storage.js';

const DTYPES: FactorDtype[] = [
  'F32',
  'F16',
  'BF16',
  ...QUANTISED_NAMES.flatMap((code) => [64, 128].map((scaleGroup) => ({ code, scaleGroup }))),
];
const nameOf = (dtype: FactorDtype): string =>
  typeof dtype === 'string' ? dtype : `${dtype.code} by ${dtype.scaleGroup}`;
const CASES = DTYPES.map((dtype): [string, FactorDtype] => [nameOf(dtype), dtype]);
/** The most that a value moves, as a share of the largest of its scale group. */
const MOVES: Readonly<Record<string, number>> = { int8: 0.005, fp8: 0.07, int6: 0.04, int5: 0.08, int4: 0.16 };

const normal = (seed: number, length: number): Float32Array<ArrayBuffer> => {
  const random = createRandom(seed);
  return Float32Array.from({ length }, () => random.normal());
};
const sizeOf = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);
const mean = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0) / values.length;

describe.each(CASES)('%s:', (_, dtype) => {
  test.each([[[3, 5, 64]], [[2, 7, 200]], [[9, 1]], [[4, 129]]])('factors of shape %j', (shape) => {
    const factor: StoredFactor = { name: 'B', shape, dtype };
    const values = normal(sizeOf(shape), sizeOf(shape));
    const parts = encodeFactor(factor, values, 'a factor');
    expect(Object.entries(parts).map(([key, { byteLength }]) => [key, byteLength])).toEqual(
      partsOf([factor]).map(({ key, bytes }) => [key, bytes]),
    );
    for (const { bytes, dtype: stored, shape: own } of factorParts(dtype, shape)) {
      const element = { F32: 4, I32: 4, F16: 2, BF16: 2, I8: 1, F8_E4M3: 1 }[stored] as number;
      expect(bytes).toBe(element * sizeOf(own));
    }
    const { B } = decodeFactors([factor], parts) as { B: Float32Array };
    expect(B).toHaveLength(values.length);
    const largest = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const most =
      typeof dtype === 'string' ? { F32: 0, F16: 0.0005, BF16: 0.004 }[dtype] : 3 * (MOVES[dtype.code] as number);
    values.forEach((value, i) => void expect(Math.abs((B[i] as number) - value)).toBeLessThanOrEqual(most * largest));
    // Decoded numbers are on the grid: the scales of a group's largest code store them again without loss.
    if (typeof dtype === 'string') expect(encodeFactor(factor, B, 'again')).toEqual(parts);
  });

  test('a value that is not finite is refused by its label', () => {
    const factor: StoredFactor = { name: 'A', shape: [2, 64], dtype };
    for (const value of [Number.NaN, Number.POSITIVE_INFINITY]) {
      const values = normal(1, 128);
      values[70] = value;
      const gram = Float32Array.from({ length: 64 * 64 }, (_, i) => (i % 65 === 0 ? 1 : 0));
      for (const metric of [undefined, gram])
        expect(() => encodeFactor(factor, values, 'A of expert 3', metric)).toThrow(OverflowError);
    }
  });
});

describe('in a metric, a quantised factor has a smaller error there:', () => {
  test.each(QUANTISED_NAMES)('%s', (code) => {
    const [rows, cols] = [24, 96];
    const factor: StoredFactor = { name: 'A', shape: [rows, cols], dtype: { code, scaleGroup: 64 } };
    const values = normal(7, rows * cols);
    // G = F Fᵀ of few directions, as that of bases is.
    const F = normal(8, cols * 12);
    const gram = new Float32Array(cols * cols);
    for (let i = 0; i < cols; i++)
      for (let j = 0; j < cols; j++) {
        let sum = i === j ? 0.05 : 0;
        for (let k = 0; k < 12; k++) sum += (F[i * 12 + k] as number) * (F[j * 12 + k] as number);
        gram[i * cols + j] = sum;
      }
    const errorOf = (metric?: Float32Array): number => {
      const { A } = decodeFactors([factor], encodeFactor(factor, values, 'A', metric)) as { A: Float32Array };
      return mean(
        Array.from({ length: rows }, (_, row) => {
          const error = Array.from(
            { length: cols },
            (_, i) => (A[row * cols + i] as number) - (values[row * cols + i] as number),
          );
          return error.reduce(
            (sum, e, i) => sum + error.reduce((own, f, j) => own + e * f * (gram[i * cols + j] as number), 0),
            0,
          );
        }),
      );
    };
    expect(errorOf(gram)).toBeLessThan(0.5 * errorOf());
  });
});

test('packed rows tell their columns where these fill whole words', () => {
  for (const code of ['int6', 'int5', 'int4'] as const)
    for (let cols = 1; cols < 300; cols++) {
      const dtype = { code, scaleGroup: 64 };
      const [data] = factorParts(dtype, [4, cols]);
      const { least, most } = columnsOf(data?.shape[1] as number, packedBits(dtype) as number);
      expect(least).toBeLessThanOrEqual(cols);
      expect(most).toBeGreaterThanOrEqual(cols);
      if (cols % 32 === 0) expect(most).toBe(cols);
    }
});
