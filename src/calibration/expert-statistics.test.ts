/** Metrics of experts against the same sums in f64. */
import { beforeAll, describe, expect, test } from 'vitest';
import { testedEngines } from '../../fixtures/engines.js';
import {
  at,
  build,
  each,
  flat,
  identity,
  type Matrix,
  normals,
  positiveDefinite,
  product,
  reshaped,
  transposed,
  uniform,
} from '../../fixtures/metric-oracle.js';
import type { Engine } from '../engine/engine.js';
import type { MetricForm } from '../methods/method.js';
import type { Projection } from '../models/family.js';
import { ExpertStatistics, type Measured, neededWeights, tokensAtOnce } from './expert-statistics.js';
import { createLowRank } from './low-rank.js';
import { shrinkage } from './shrinkage.js';

const [P, D] = [5, 12];
const COUNT = 100;
const X = normals(COUNT, D);
const v = Float32Array.from({ length: COUNT }, () => 0.2 + uniform());
const gate = normals(P, D);
const up = normals(P, D);
const down = normals(D, P);
const silu = (x: number): number => x / (1 + Math.exp(-x));
const slope = (x: number): number => (silu(x + 1e-4) - silu(x - 1e-4)) / 2e-4;

let engines: Engine[];
beforeAll(async () => {
  engines = await testedEngines();
});

async function measure(
  projection: Projection,
  form: MetricForm,
  { engine = engines[0] as Engine, count = COUNT } = {},
) {
  const statistics = new ExpertStatistics(engine, { projection, rows: P, cols: D, form, activation: 'silu', seed: 1 });
  statistics.begin({ expert: 0, tokens: count, shrinkage: 0.25 }, { gate: flat(gate), up: flat(up), down: flat(down) });
  for (let first = 0; first < count; first += 70) {
    const last = Math.min(count, first + 70);
    await statistics.add({ inputs: flat(X.slice(first, last)), importance: v.slice(first, last) });
  }
  const measured = await statistics.finish();
  await statistics.dispose();
  return measured;
}

/** (1 − ρ)·Σ features featuresᵀ of mean diagonal 1, + ρ·I. */
function covarianceOf(features: Matrix): Matrix {
  const sum = product(transposed(features), features);
  const size = sum.length;
  const mean = sum.reduce((total, row, i) => total + (row[i] as number), 0) / size;
  return build(size, size, (i, j) => (0.75 * at(sum, i, j)) / mean + (i === j ? 0.25 : 0));
}

const inputs = (count = COUNT): Matrix => build(count, D, (t, j) => at(X, t, j) * (v[t] as number));
const [g, u] = [product(X, transposed(gate)), product(X, transposed(up))];
const hidden = build(COUNT, P, (t, k) => silu(at(g, t, k)) * at(u, t, k) * (v[t] as number));

const numbers = ({ matrices }: Measured): Float32Array => new Float32Array(matrices.buffer);
function expectNear(values: ArrayLike<number>, expected: Matrix, tolerance = 1e-4): void {
  const wanted = expected.flat();
  expect(values).toHaveLength(wanted.length);
  const largest = Math.max(...wanted.map(Math.abs));
  for (const [i, value] of wanted.entries())
    expect(Math.abs((values[i] as number) - value) / largest).toBeLessThan(tolerance);
}

const own = { shared: false } as const;
const full = { form: 'full', ...own } as const;
const neurons = { form: 'diagonal', ...own } as const;

describe('the metric of an expert', () => {
  test('of gate and up has the covariance of inputs, after the room for rows', async () => {
    for (const engine of engines) {
      const values = numbers(await measure('gate_proj', { columns: full, rows: neurons }, { engine }));
      expect([...values.subarray(0, P)]).toEqual(new Array(P).fill(0));
      expectNear(values.subarray(P), covarianceOf(inputs()));
    }
  });

  test('of down has the covariance of hidden activations', async () => {
    expectNear(numbers(await measure('down_proj', { rows: full })), covarianceOf(hidden));
  });

  test.each<[Projection, (g: number, u: number) => number]>([
    ['gate_proj', (g, u) => slope(g) * u],
    ['up_proj', (g) => silu(g)],
  ])('%s weighs neurons by what they do to the output', async (projection, effect) => {
    const { neurons: sums } = await measure(projection, { columns: full, rows: neurons });
    const expected = each(P, (k) => {
      const norm = down.reduce((sum, row) => sum + (row[k] as number) ** 2, 0);
      return X.reduce((sum, _, t) => sum + ((v[t] as number) * effect(at(g, t, k), at(u, t, k))) ** 2 * norm, 0);
    });
    expectNear(sums as Float64Array, [expected], 1e-3);
  });

  test('of low rank is the tokens themselves if they are no more', async () => {
    const values = numbers(await measure('up_proj', { columns: { form: 'low-rank', rank: 6, ...own } }, { count: 6 }));
    const Z = reshaped(values.subarray(0, -1), D, 6);
    expect(values.at(-1)).toBeCloseTo(0.25, 6);
    const expected = covarianceOf(inputs(6));
    expectNear(
      product(Z, transposed(Z)).flat(),
      build(D, D, (i, j) => at(expected, i, j) - (i === j ? 0.25 : 0)),
    );
  });

  test('of low rank keeps mean diagonal 1', async () => {
    const values = numbers(await measure('up_proj', { columns: { form: 'low-rank', rank: 4, ...own } }));
    const trace = values.subarray(0, -1).reduce((sum, value) => sum + value * value, 0);
    expect(trace / D + (values.at(-1) as number)).toBeCloseTo(1, 5);
  });

  test('of the same covariance is not computed twice', async () => {
    const [engine] = engines as [Engine];
    const options = { rows: P, cols: D, form: { columns: full, rows: neurons }, activation: 'silu', seed: 1 } as const;
    const first = new ExpertStatistics(engine, { ...options, projection: 'gate_proj' });
    const twin = new ExpertStatistics(engine, { ...options, projection: 'up_proj' }, first);
    const weights = { gate: flat(gate), up: flat(up), down: flat(down) };
    const results: Measured[] = [];
    for (const it of [first, twin]) {
      it.begin({ expert: 0, tokens: COUNT, shrinkage: 0.25 }, weights);
      await it.add({ inputs: flat(X), importance: v });
    }
    for (const it of [first, twin]) results.push(await it.finish());
    const [a, b] = results.map((it) => numbers(it).subarray(P));
    expect(b).toEqual(a);
    expect(results[1]?.neurons).toEqual((await measureOnce('up_proj', engine)).neurons);
  });

  test('is not finite if its tokens are not', async () => {
    const [engine] = engines as [Engine];
    const statistics = new ExpertStatistics(engine, {
      ...{ projection: 'up_proj', rows: P, cols: D, form: { columns: full }, activation: 'silu', seed: 1 },
    });
    statistics.begin({ expert: 0, tokens: 1, shrinkage: 0.25 }, {});
    await statistics.add({ inputs: new Float32Array(D).fill(Number.NaN), importance: Float32Array.of(1) });
    expect(numbers(await statistics.finish()).some(Number.isNaN)).toBe(true);
  });

  test('of tokens that count nothing is the identity', async () => {
    const [engine] = engines as [Engine];
    const options = { projection: 'up_proj', rows: P, cols: D, activation: 'silu', seed: 1 } as const;
    const statistics = new ExpertStatistics(engine, { ...options, form: { columns: full } });
    statistics.begin({ expert: 0, tokens: 1, shrinkage: 0.25 }, {});
    await statistics.add({ inputs: new Float32Array(D), importance: Float32Array.of(1) });
    expectNear(numbers(await statistics.finish()), identity(D));
  });
});

async function measureOnce(projection: Projection, engine: Engine): Promise<Measured> {
  const form = { columns: full, rows: neurons };
  const statistics = new ExpertStatistics(engine, { projection, rows: P, cols: D, form, activation: 'silu', seed: 1 });
  statistics.begin({ expert: 0, tokens: COUNT, shrinkage: 0.25 }, { gate: flat(gate), up: flat(up), down: flat(down) });
  await statistics.add({ inputs: flat(X), importance: v });
  return statistics.finish();
}

test('an expert without a gate is weighed by the slope of its activation', () => {
  expect(neededWeights('up_proj', false)).toEqual(['up', 'down']);
  expect(neededWeights('down_proj', false)).toEqual(['up']);
});

test('a batch of tokens is a power of two, and smaller for wide inputs', () => {
  expect(tokensAtOnce(192)).toBe(4096);
  expect(tokensAtOnce(7168)).toBe(1024);
  expect(tokensAtOnce(1e6)).toBe(64);
});

test.each([
  [0, 0.4],
  [192, 0.4],
  [960, 0.2],
  [3840, 0.1],
  [1e6, 0.1],
  [192 * Math.sqrt(5), 0.3],
])('%f tokens of width 192 are shrunk by %f', (tokens, share) => {
  expect(shrinkage(tokens, 192)).toBeCloseTo(share, 10);
});

test('a low rank catches nearly all that the best of its rank does, on every engine', async () => {
  const [size, rank] = [40, 8];
  const S = positiveDefinite(size, 1e4);
  for (const engine of engines) {
    const approximation = await createLowRank(engine, size, rank);
    const trace = S.reduce((sum, row, i) => sum + (row[i] as number), 0);
    const { Z, c } = await approximation.of(engine.tensor(flat(S), [size, size]), trace, 3);
    const again = await approximation.of(engine.tensor(flat(S), [size, size]), trace, 3);
    expect(again).toEqual({ Z, c });
    const found = Z.reduce((sum, value) => sum + value * value, 0);
    expect(found + size * c).toBeCloseTo(trace, 3);
    const factor = reshaped(Z, size, rank);
    const rest = build(size, size, (i, j) => at(S, i, j) - at(product(factor, transposed(factor)), i, j));
    const least = Math.min(...each(20, () => rayleigh(rest)));
    expect(least).toBeGreaterThan(-1e-3 * trace);
    // The largest eigenvalues of this spectrum, a factor 1e4 over 40, make up 84 % of the trace.
    expect(found / trace).toBeGreaterThan(0.8);
    await approximation.dispose();
  }
});

/** xᵀMx/xᵀx of a random x. */
function rayleigh(M: Matrix): number {
  const x = normals(1, M.length);
  return at(product(x, M, transposed(x)), 0, 0) / at(product(x, transposed(x)), 0, 0);
}
