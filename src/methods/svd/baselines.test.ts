import { expect, test } from 'vitest';
import { truncatedSvd } from '../../linalg/lapack/truncated-svd.js';
import { createRandom } from '../../linalg/random.js';
import { groupedSvd, perExpertSvd, sharedBasisSvd } from './baselines.js';

const ROWS = 6;
const COLS = 20;
const RANK = 4;
const random = createRandom(7);
const normals = (length: number) => Float32Array.from({ length }, () => random.normal());

/** A·B of (rows, RANK) by (RANK, cols). */
function product(A: Float32Array, B: Float32Array): Float32Array {
  const rows = A.length / RANK;
  const C = new Float32Array(rows * COLS);
  for (let i = 0; i < rows; i++)
    for (let k = 0; k < RANK; k++)
      for (let j = 0; j < COLS; j++)
        C[i * COLS + j] = (C[i * COLS + j] as number) + (A[i * RANK + k] as number) * (B[k * COLS + j] as number);
  return C;
}

test('experts of one row space cost a shared basis nothing, and the others something', () => {
  const B = normals(RANK * COLS);
  const experts = Array.from({ length: 5 }, () => product(normals(ROWS * RANK), B));
  const parameters = 5 * ROWS * RANK + RANK * COLS;
  expect(sharedBasisSvd(experts, ROWS, COLS, parameters)).toMatchObject({ rank: RANK, parameters });
  expect(sharedBasisSvd(experts, ROWS, COLS, parameters).relativeError).toBeLessThan(1e-3);
  expect(perExpertSvd(experts, ROWS, COLS, parameters).relativeError).toBeGreaterThan(0.3);
});

test('the errors are those of the truncated matrices themselves', () => {
  const experts = Array.from({ length: 4 }, () => normals(ROWS * COLS));
  for (const groups of [1, 2, 4]) {
    const parameters = RANK * (4 * ROWS + groups * COLS);
    const size = 4 / groups;
    let error = 0;
    let norm = 0;
    for (let g = 0; g < groups; g++) {
      const stacked = Float32Array.from(experts.slice(g * size, (g + 1) * size).flatMap((values) => [...values]));
      const { left, right } = truncatedSvd(stacked, size * ROWS, COLS, RANK);
      const rebuilt = product(left, right);
      for (const [i, value] of stacked.entries()) {
        error += (value - (rebuilt[i] as number)) ** 2;
        norm += value * value;
      }
    }
    const baseline = groupedSvd(experts, ROWS, COLS, parameters, groups);
    expect(baseline.rank).toBe(RANK);
    expect(baseline.relativeError).toBeCloseTo(Math.sqrt(error / norm), 6);
  }
});

test('a budget for more than everything leaves no error and is not all spent', () => {
  const experts = [normals(ROWS * COLS)];
  const { relativeError, rank } = perExpertSvd(experts, ROWS, COLS, 1e6);
  expect(relativeError).toBeLessThan(1e-3);
  expect(rank).toBeLessThanOrEqual(COLS);
});
