import { describe, expect, test } from 'vitest';
import { testedEngines } from '../../../fixtures/engines.js';
import type { Engine, EngineTensor } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { matmul, type Value } from '../../engine/ops.js';
import { createRandom } from '../../linalg/random.js';
import {
  eliminate,
  gramBlocks,
  identityLeaves,
  leafElements,
  leafRows,
  leafShape,
  solve,
  trackLeaves,
} from './block-solve.js';
import { restart } from './inverse.js';

const engines = (await testedEngines()) as [Engine, ...Engine[]];
const random = createRandom(7);
const normals = (count: number): Float32Array => Float32Array.from({ length: count }, () => random.normal());

test.each([
  [1, [1]],
  [128, [128]],
  [129, [65, 64]],
  [259, [65, 65, 65, 64]],
  [768, [96, 96, 96, 96, 96, 96, 96, 96]],
])('a matrix of %d rows has leaves of %j rows', (size, rows) => {
  expect(leafRows(size)).toEqual(rows);
  expect(rows.reduce((a, b) => a + b)).toBe(size);
  expect(leafElements(size)).toBe(rows.reduce((sum, b) => sum + b * b, 0));
});

const [n, p, d] = [2, 7, 300];

/** The largest error of A that is found from V = A·F·Fᵀ, relative to the largest value of A. */
async function errorOf(engine: Engine, rank: number, way: 'tracked' | 'eliminated'): Promise<number> {
  const A = normals(n * p * rank);
  const shapes = { F: [n, rank, d], A: [n, p, rank], X: leafShape(n, rank) };
  const graph = trace(shapes, ({ F, A, X }): Record<string, Value> => {
    const V = matmul(A, matmul(F, F, { transposeB: true }));
    const { G } = gramBlocks(F, F, 0);
    if (way === 'eliminated') return { found: solve(G, V, eliminate).A };
    const tracker = trackLeaves(X, (leaf, known) => restart(leaf, known, 30));
    return { found: solve(G, V, tracker.solveLeaf).A, ...tracker.gather() };
  });
  const program = await engine.compile(graph);
  const out = await program.run({
    F: engine.tensor(normals(n * rank * d), shapes.F),
    A: engine.tensor(A, shapes.A),
    X: engine.tensor(identityLeaves(n, rank), shapes.X),
  });
  if (out.residual) expect((await engine.read(out.residual))[0]).toBeLessThan(1e-6);
  const found = await engine.read(out.found as EngineTensor);
  const error = Math.max(...found.map((value, i) => Math.abs(value - (A[i] as number))));
  await program.dispose();
  return error / Math.max(...A.map(Math.abs));
}

describe.each(engines.map((engine) => [engine.name, engine] as const))('on %s', (_, engine) => {
  test.each([3, 128, 129, 259])('A of A·G = V is found with tracked leaves: %d rows', async (rank) => {
    expect(await errorOf(engine, rank, 'tracked')).toBeLessThan(1e-3);
  });
  test.each([1, 5, 131])('A of A·G = V is found by elimination: %d rows', async (rank) => {
    expect(await errorOf(engine, rank, 'eliminated')).toBeLessThan(1e-3);
  });
});
