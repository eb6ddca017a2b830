import { describe, expect, test } from 'vitest';
import { encodeFloats, floatsOf } from '../../checkpoint/codec.js';
import { createEngine } from '../../engine/create-engine.js';
import { truncatedSvd } from '../../linalg/lapack/truncated-svd.js';
import { createRandom } from '../../linalg/random.js';
import type { Factors, Rounding } from '../method.js';
import { svd } from './svd.js';

const engine = await createEngine('onnx-cpu', { threads: 1 });
const random = createRandom(3);
const normals = (count: number): Float32Array => Float32Array.from({ length: count }, () => random.normal());
const unrounded: Rounding = (values) => values.slice();
const toBfloat16: Rounding = (values) => floatsOf('BF16', encodeFloats('BF16', values));

/** (rows, inner) · (inner, cols), summed in f64. */
function product(a: Float32Array, b: Float32Array, rows: number, cols: number): Float32Array {
  const inner = a.length / rows;
  return Float32Array.from({ length: rows * cols }, (_, at) => {
    const [i, j] = [Math.floor(at / cols), at % cols];
    let sum = 0;
    for (let k = 0; k < inner; k++) sum += (a[i * inner + k] as number) * (b[k * cols + j] as number);
    return sum;
  });
}

/** As a run takes it: the fit, an expert's factors, its weights. */
async function decompose(W: Float32Array, rows: number, cols: number, rank: number, round: Rounding) {
  const problem = { experts: 1, rows, cols, rank };
  const targets = { read: (_: number, target: Float32Array) => target.set(W) };
  const options = { solver: 'svd', steps: 1, batchExperts: 1, holdTargets: false, seed: 0, label: 'test', sigma: 1 };
  const { shared } = await svd.fit(engine, problem, targets, options);
  const experts = await svd.expertFactors(engine, problem, shared, round);
  const factors = await experts.fit(0, W);
  await experts.dispose();
  const rebuilding = await svd.rebuild(engine, problem, shared);
  const rebuilt = await rebuilding.expert(0, factors);
  await rebuilding.dispose();
  return { factors, rebuilt };
}

const squared = (values: ArrayLike<number>): number => Array.from(values).reduce((sum, x) => sum + x * x, 0);
const difference = (a: Float32Array, b: Float32Array): Float32Array => a.map((x, i) => x - (b[i] as number));

/** ‖W‖² less the energy of the first singular values. */
function leastError(W: Float32Array, rows: number, cols: number, rank: number): number {
  const { singularValues } = truncatedSvd(W, rows, cols, 1);
  return squared(singularValues.subarray(rank));
}

/** Rows of lengths that fall by a factor of `range` from the first to the last. */
const graded = (rows: number, cols: number, range: number): Float32Array =>
  normals(rows * cols).map((x, at) => x * range ** (-Math.floor(at / cols) / rows));

describe('the error is the least that the rank allows (Eckart and Young):', () => {
  test.each([
    ['wide', 24, 70, 9, normals(24 * 70)],
    ['tall', 70, 24, 9, normals(24 * 70)],
    ['square', 30, 30, 20, normals(900)],
    ['with one large value', 24, 70, 10, graded(24, 70, 1).map((x, at) => (at < 70 ? 300 * x : x))],
    ['graded over four decades', 40, 90, 10, graded(40, 90, 1e4)],
    ['of rank one more than is kept', 20, 60, 4, product(normals(100), normals(300), 20, 60)],
  ])('a matrix that is %s', async (_, rows, cols, rank, W) => {
    const { rebuilt } = await decompose(W, rows, cols, rank, unrounded);
    const error = squared(difference(W, rebuilt));
    const least = leastError(W, rows, cols, rank);
    // What f32 can tell apart at all: 1e-7 of ‖W‖².
    expect(error - least).toBeLessThan(1e-5 * least + 1e-7 * squared(W));
    expect(error - least).toBeGreaterThan(-1e-5 * least - 1e-7 * squared(W));
  });
});

test('a matrix of lower rank than is kept comes back, and the rest of V is zero or of length 1', async () => {
  const W = product(normals(30 * 3), normals(3 * 80), 30, 80);
  const { factors, rebuilt } = await decompose(W, 30, 80, 8, unrounded);
  expect(squared(difference(W, rebuilt)) / squared(W)).toBeLessThan(1e-11);
  const V = factors.V as Float32Array;
  for (let k = 0; k < 8; k++) {
    const length = squared(V.subarray(k * 80, (k + 1) * 80));
    expect(Math.min(length, Math.abs(length - 1))).toBeLessThan(1e-5);
  }
});

test('zero weights have zero factors', async () => {
  const { rebuilt } = await decompose(new Float32Array(12 * 20), 12, 20, 3, unrounded);
  expect(squared(rebuilt)).toBe(0);
});

test('A is fitted to V as it is stored: what is left has nothing in common with V', async () => {
  const [rows, cols, rank] = [24, 70, 9];
  const W = normals(rows * cols);
  const { factors, rebuilt } = await decompose(W, rows, cols, rank, toBfloat16);
  const V = factors.V as Float32Array;
  expect(V).toEqual(toBfloat16(V));
  const left = difference(W, rebuilt);
  const turned = Float32Array.from(
    { length: cols * rank },
    (_, at) => V[(at % rank) * cols + Math.floor(at / rank)] as number,
  );
  expect(squared(product(left, turned, rows, rank)) / squared(W)).toBeLessThan(1e-11);
  expect(squared(left) / leastError(W, rows, cols, rank)).toBeLessThan(1 + 1e-4);
});

test('the same weights have the same factors, bit by bit', async () => {
  const W = normals(20 * 50);
  const run = async (): Promise<Factors> => (await decompose(W, 20, 50, 7, toBfloat16)).factors;
  expect(await run()).toEqual(await run());
});
