import { describe, expect, test } from 'vitest';
import { createRandom } from '../../linalg/random.js';
import { quantiseMatrix } from './quantise-matrix.js';

const random = createRandom(11);
const normals = (count: number): Float32Array => Float32Array.from({ length: count }, () => random.normal());
const [rows, cols] = [24, 160];
const values = normals(rows * cols);

/** XXᵀ of inputs in which every column has much of a common one. */
const gram = (() => {
  const samples = 400;
  const common = normals(samples);
  const X = normals(samples * cols).map((x, i) => x + 3 * (common[Math.floor(i / cols)] as number));
  return Float32Array.from({ length: cols * cols }, (_, at) => {
    const [i, j] = [Math.floor(at / cols), at % cols];
    let sum = 0;
    for (let k = 0; k < samples; k++) sum += (X[k * cols + i] as number) * (X[k * cols + j] as number);
    return sum;
  });
})();

/** tr(E·G·Eᵀ) */
function errorIn(rounded: Float32Array): number {
  const E = values.map((value, i) => value - (rounded[i] as number));
  let sum = 0;
  for (let row = 0; row < E.length; row += cols)
    for (let i = 0; i < cols; i++)
      for (let j = 0; j < cols; j++)
        sum += (E[row + i] as number) * (gram[i * cols + j] as number) * (E[row + j] as number);
  return sum;
}

const squaredError = (rounded: Float32Array): number =>
  values.reduce((sum, value, i) => sum + (value - (rounded[i] as number)) ** 2, 0);

describe.each([2, 3, 4, 8])('%i bits', (width) => {
  test.each([64, 128])('groups of %i have at most 2^bits values, whole multiples of a bf16 scale', (scaleGroup) => {
    for (const metric of [undefined, gram]) {
      const rounded = quantiseMatrix(values, { rows, cols }, { width, scaleGroup }, metric && { gram: metric });
      for (let row = 0; row < rows; row++)
        for (let first = 0; first < cols; first += scaleGroup) {
          const group = rounded.subarray(row * cols + first, row * cols + Math.min(cols, first + scaleGroup));
          const distinct = [...new Set(group)].sort((a, b) => a - b);
          expect(distinct.length).toBeLessThanOrEqual(2 ** width);
          const magnitudes = distinct.map(Math.abs).filter((it) => it > 0);
          const scales = magnitudes.flatMap((it) => Array.from({ length: 2 ** (width - 1) }, (_, i) => it / (i + 1)));
          const isScale = (scale: number): boolean =>
            (new Uint32Array(Float32Array.of(scale).buffer)[0] as number) % 2 ** 16 === 0 &&
            distinct.every((it) => Number.isInteger(it / scale) && Math.abs(it / scale) <= 2 ** (width - 1));
          expect(scales.some(isScale)).toBe(true);
        }
    }
  });

  test('error feedback lowers the error in the metric, and plain rounding has the smaller squared error', () => {
    const form = { width, scaleGroup: 64 };
    const plain = quantiseMatrix(values, { rows, cols }, form);
    const fed = quantiseMatrix(values, { rows, cols }, form, { gram });
    expect(errorIn(fed)).toBeLessThan(0.8 * errorIn(plain));
    expect(squaredError(plain)).toBeLessThan(squaredError(fed));
  });
});
