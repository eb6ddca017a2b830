import { describe, expect, test } from 'vitest';
import { truncatedSvd } from './lapack/truncated-svd.js';
import { createRandom } from './random.js';
import { largestEigen } from './symmetric-eigen.js';
import { dot } from './vectors.js';

const random = createRandom(11);

/** X·Xᵀ of a random X (n, rank), its k-th column scaled. */
function gram(n: number, rank: number, scale: (k: number) => number): Float64Array {
  const X = Array.from({ length: n }, () => Float64Array.from({ length: rank }, (_, k) => scale(k) * random.normal()));
  return Float64Array.from({ length: n * n }, (_, i) =>
    dot(X[Math.floor(i / n)] as Float64Array, 0, X[i % n] as Float64Array, 0, rank),
  );
}

const blocks = new Float64Array(30 * 30);
for (let i = 0; i < 30; i++) for (let j = 0; j < 30; j++) if (i % 3 === j % 3) blocks[i * 30 + j] = i === j ? 2 : 1;

const matrices: Array<[name: string, n: number, count: number, matrix: Float64Array]> = [
  ['of full rank', 60, 25, gram(60, 90, () => 1)],
  ['whole', 40, 40, gram(40, 60, () => 1)],
  ['of low rank', 50, 30, gram(50, 12, () => 1)],
  ['with values over ten decades', 40, 40, gram(40, 40, (k) => 10 ** (-k / 8))],
  ['with few, repeated values', 30, 12, blocks],
  ['the identity', 20, 20, Float64Array.from({ length: 400 }, (_, i) => Number(i % 21 === 0))],
  ['zero', 10, 4, new Float64Array(100)],
  ['indefinite', 2, 2, Float64Array.of(0, 3, 3, 0)],
  ['a number', 1, 1, Float64Array.of(-4)],
  ['tiny', 30, 10, gram(30, 40, () => 1e-30)],
];

describe('largestEigen', () => {
  test.each(matrices)('A·x = λ·x with orthonormal x, for a matrix that is %s', (_, n, count, matrix) => {
    const { values, vectors } = largestEigen(matrix.slice(), n, count);
    expect([...values]).toEqual([...values].sort((a, b) => b - a));
    const norm = matrix.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    for (const [k, x] of vectors.entries()) {
      for (let i = 0; i < n; i++) {
        const residual = dot(matrix, i * n, x, 0, n) - (values[k] as number) * (x[i] as number);
        expect(Math.abs(residual)).toBeLessThanOrEqual(1e-12 * n * norm);
      }
      for (let j = 0; j <= k; j++) expect(dot(x, 0, vectors[j] as Float64Array, 0, n)).toBeCloseTo(Number(j === k), 10);
    }
  });

  test('the values are the largest there are', () => {
    const n = 48;
    const matrix = gram(n, 60, () => 1);
    const { values } = largestEigen(matrix.slice(), n, 20);
    const { singularValues } = truncatedSvd(Float32Array.from(matrix), n, n, 1);
    for (const [k, value] of values.entries()) expect(value / (singularValues[k] as number)).toBeCloseTo(1, 5);
  });
});
