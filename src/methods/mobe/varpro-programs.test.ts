import { expect, test } from 'vitest';
import { createEngine } from '../../engine/create-engine.js';
import { createRandom } from '../../linalg/random.js';
import { identityLeaves, leafShape } from './block-solve.js';
import { turnsOf } from './costs.js';
import type { Problem } from './problem.js';
import { traceGather, traceGradient, traceRestart } from './varpro-programs.js';

const engine = await createEngine('onnx-cpu', { threads: 1 });
const random = createRandom(3);

test.each([6, 131])(
  'experts one by one have the inverses, gradients and loss that they have at once: rank %d',
  async (r) => {
    const [n, p, d, m] = [3, 140, 150, 2];
    const problem: Problem = { experts: n, rows: p, cols: d, bases: m, rank: r, activation: 'silu' };
    const normals = (...shape: number[]) =>
      Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => random.normal());
    const [B, dB0] = [0, 0].map(() => engine.tensor(normals(m, r * d), [m, r * d]));
    const [alpha, W] = [normals(n, m), normals(n, p, d)];
    const read = async (tensor: unknown) => (await engine.read(tensor as never)).slice();
    /** D, X and the loss of some experts. */
    const run = async (first: number, count: number) => {
      const own = {
        B: B as never,
        alpha: engine.tensor(alpha.slice(first * m, (first + count) * m), [count, m]),
        W: engine.tensor(W.slice(first * p * d, (first + count) * p * d), [count, p, d]),
      };
      const restart = await engine.compile(traceRestart(problem, count));
      const gradient = await engine.compile(traceGradient(problem, count, undefined, { gathers: true }));
      let X = engine.tensor(identityLeaves(count, r), leafShape(count, r));
      for (let round = 0; round < 2; round++) X = (await restart.run({ ...own, X })).X as typeof X;
      const out = await gradient.run({ ...own, X });
      expect((await read(out.residual))[0]).toBeLessThan(0.25);
      return { D: await read(out.D), X: await read(out.X), squared: await read(out.squared) };
    };
    const gather = await engine.compile(traceGather(problem, n, m));
    const sum = async (D: Float32Array) => {
      const alphas = engine.tensor(alpha, [n, m]);
      const inputs = { B, dB0, alpha: alphas, D: engine.tensor(D, [n, r * d]) } as never;
      const { dB, dAlpha } = await gather.run(inputs);
      return { dB: await read(dB), dAlpha: await read(dAlpha) };
    };
    const atOnce = await run(0, n);
    const single = [await run(0, 1), await run(1, 1), await run(2, 1)];
    const joined = (name: 'D' | 'X') => Float32Array.from(single.flatMap((it) => [...it[name]]));
    const expected = { X: atOnce.X, squared: atOnce.squared, ...(await sum(atOnce.D)) };
    const actual = {
      X: joined('X'),
      squared: Float32Array.of(single.reduce((total, it) => total + (it.squared[0] as number), 0)),
      ...(await sum(joined('D'))),
    };
    for (const name of ['X', 'squared', 'dB', 'dAlpha'] as const) {
      const [a, b] = [expected[name], actual[name]];
      expect(b).toHaveLength(a.length);
      const largest = Math.max(...a.map(Math.abs));
      expect(largest).toBeGreaterThan(0);
      for (const [i, value] of a.entries())
        expect(Math.abs(value - (b[i] as number)) / largest, name).toBeLessThan(1e-3);
    }
  },
);

test('D are collected of large experts, as many as there are bases and as memory holds, and not in a metric', () => {
  const large: Problem = { experts: 64, rows: 768, cols: 2048, bases: 4, rank: 768, activation: 'silu' };
  expect(turnsOf(large, 1)).toBe(4);
  expect(turnsOf({ ...large, bases: 32 }, 1)).toBe(8);
  expect(turnsOf({ ...large, rows: 2048, rank: 2048, cols: 7168, bases: 64 }, 1)).toBe(4);
  expect(turnsOf(large, 2)).toBe(1);
  expect(turnsOf(large, 1, {})).toBe(1);
  expect(turnsOf({ ...large, rows: 64, rank: 64 }, 1)).toBe(1);
});
