import { readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { SVD_SIGNS } from '../../../fixtures/paths.js';
import { createRandom } from '../random.js';
import { type TruncatedSvd, truncatedSvd } from './truncated-svd.js';

const normals = (length: number, seed: number): Float32Array => {
  const random = createRandom(seed);
  return Float32Array.from({ length }, () => random.normal());
};

/** Largest deviations: of A·Vᵀ from the matrix, of V from orthonormal rows (as far as the matrix has rank). */
function deviations(matrix: Float32Array, rows: number, cols: number, { left, right, singularValues }: TruncatedSvd) {
  const rank = left.length / rows;
  const entry = (values: Float32Array, i: number): number => values[i] as number;
  let rebuilt = 0;
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < cols; j++) {
      let sum = 0;
      for (let k = 0; k < rank; k++) sum += entry(left, i * rank + k) * entry(right, k * cols + j);
      rebuilt = Math.max(rebuilt, Math.abs(sum - entry(matrix, i * cols + j)));
    }
  }
  let orthonormal = 0;
  for (let a = 0; a < Math.min(rank, singularValues.length); a++) {
    for (let b = 0; b <= a; b++) {
      let sum = a === b ? -1 : 0;
      for (let j = 0; j < cols; j++) sum += entry(right, a * cols + j) * entry(right, b * cols + j);
      orthonormal = Math.max(orthonormal, Math.abs(sum));
    }
  }
  return { rebuilt, orthonormal };
}

describe('truncatedSvd', () => {
  const { matrices } = JSON.parse(readFileSync(SVD_SIGNS, 'utf8')) as {
    matrices: [number, number, number, number, number[]][];
  };
  test.each(matrices)('has the signs of PyTorch: %i × %i', (rows, cols, seed, halving, places) => {
    let x = seed;
    const matrix = Float32Array.from({ length: rows * cols }, (_, i) => {
      x = (Math.imul(1664525, x) + 1013904223) >>> 0;
      return ((x >>> 8) / 2 ** 24 - 0.5) / 2 ** Math.floor((i % cols) / halving);
    });
    const { right } = truncatedSvd(matrix, rows, cols, Math.min(rows, cols));
    const signs = places.map((place, k) => Math.sign(right[k * cols + Math.abs(place) - 1] as number));
    expect(signs).toEqual(places.map(Math.sign));
  });

  const twice = normals(60 * 90, 3);
  const matrixes: [string, number, number, Float32Array][] = [
    ['tall', 90, 60, normals(5400, 1)],
    ['tall and narrow', 200, 40, normals(8000, 2)],
    ['wide', 30, 80, normals(2400, 4)],
    ['of half the rank', 120, 90, Float32Array.from([...twice, ...twice])],
    [
      'of rank one',
      50,
      40,
      Float32Array.from({ length: 2000 }, (_, i) => Math.sin(Math.floor(i / 40)) * ((i % 40) - 3)),
    ],
    ['the identity', 60, 60, Float32Array.from({ length: 3600 }, (_, i) => Number(i % 61 === 0))],
    ['zero', 40, 30, new Float32Array(1200)],
    ['with empty columns', 60, 60, normals(3600, 5).map((value, i) => (i % 60 < 30 ? value : 0))],
    ['tiny', 70, 40, normals(2800, 6).map((value) => value * 1e-20)],
  ];
  test.each(matrixes)('decomposes a matrix that is %s', (_, rows, cols, matrix) => {
    const svd = truncatedSvd(matrix, rows, cols, Math.min(rows, cols));
    const largest = matrix.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
    const { rebuilt, orthonormal } = deviations(matrix, rows, cols, svd);
    expect(rebuilt).toBeLessThanOrEqual(2e-6 * largest);
    expect(orthonormal).toBeLessThan(2e-6);
    expect([...svd.singularValues]).toEqual([...svd.singularValues].sort((a, b) => b - a));
  });

  test('cut to a rank, leaves the energy of the values cut off', () => {
    const matrix = normals(90 * 70, 8);
    const svd = truncatedSvd(matrix, 90, 70, 20);
    const kept = svd.left.reduce((sum, value) => sum + value * value, 0);
    const whole = matrix.reduce((sum, value) => sum + value * value, 0);
    const cut = svd.singularValues.subarray(20).reduce((sum, value) => sum + value * value, 0);
    expect(svd.right).toHaveLength(20 * 70);
    expect((kept + cut) / whole).toBeCloseTo(1, 6);
  });
});
