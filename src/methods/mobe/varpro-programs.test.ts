import { expect, test } from 'vitest';
import { createEngine } from '../../engine/create-engine.js';
import { createRandom } from '../../linalg/random.js';
import { identityLeaves, leafShape } from './block-solve.js';
import { turnsOf } from './costs.js';
import type { Problem } from './problem.js';
import { traceGradient, traceRestart } from './varpro-programs.js';

const engine = await createEngine('onnx-cpu', { threads: 1 });
const random = createRandom(3);

test.each([6, 131])(
  'experts in turn have the inverses, gradients and loss that they have at once: rank %d',
  async (r) => {
    const [n, p, d, m] = [3, 140, 150, 2];
    const problem: Problem = { experts: n, rows: p, cols: d, bases: m, rank: r, activation: 'silu' };
    const normals = (...shape: number[]) =>
      engine.tensor(
        Float32Array.from({ length: shape.reduce((a, b) => a * b) }, () => random.normal()),
        shape,
      );
    const state = { B: normals(m, r * d), alpha: normals(n, m) };
    const rest = { W: normals(n, p, d), dB0: normals(m, r * d) };
    const run = async (inTurn: boolean) => {
      const restart = await engine.compile(traceRestart(problem, n, undefined, { inTurn }));
      const gradient = await engine.compile(traceGradient(problem, n, undefined, { inTurn }));
      let X = engine.tensor(identityLeaves(n, r), leafShape(n, r));
      for (let round = 0; round < 2; round++) X = (await restart.run({ ...state, X })).X as typeof X;
      return gradient.run({ ...state, ...rest, X });
    };
    const [atOnce, inTurn] = [await run(false), await run(true)];
    for (const name of ['X', 'squared', 'dB', 'dAlpha']) {
      const [a, b] = [await engine.read(atOnce[name] as never), await engine.read(inTurn[name] as never)];
      const largest = Math.max(...a.map(Math.abs));
      expect(largest).toBeGreaterThan(0);
      for (const [i, value] of a.entries())
        expect(Math.abs(value - (b[i] as number)) / largest, name).toBeLessThan(1e-3);
    }
    expect((await engine.read(inTurn.residual as never))[0]).toBeLessThan(0.25);
  },
);

test('only large experts are taken in turn, as many as there are bases, and none in a metric', () => {
  const large: Problem = { experts: 64, rows: 768, cols: 2048, bases: 4, rank: 768, activation: 'silu' };
  expect(turnsOf(large, 1)).toBe(4);
  expect(turnsOf({ ...large, bases: 32 }, 1)).toBe(8);
  expect(turnsOf(large, 2)).toBe(1);
  expect(turnsOf(large, 1, {})).toBe(1);
  expect(turnsOf({ ...large, rows: 64, rank: 64 }, 1)).toBe(1);
});
