import { afterAll, describe, expect, test } from 'vitest';
import {
  at,
  build,
  flat,
  inverse,
  type Matrix,
  minus,
  normals,
  product,
  reshaped,
  times,
  transposed,
} from '../../fixtures/metric-oracle.js';
import { createEngine } from '../engine/create-engine.js';
import { createDownRepair } from './down-repair.js';

const engine = await createEngine('onnx-cpu', { threads: 1 });

const [p, d] = [5, 8];
const tokens = 130;
const inputs = normals(tokens, d);
const importance = build(tokens, 1, (t) => 0.5 + (t % 3));

/** The tokens in two batches of different sizes. */
const batches = [inputs.slice(0, 100), inputs.slice(100)].map((some, i) => ({
  inputs: flat(some),
  importance: flat(i === 0 ? importance.slice(0, 100) : importance.slice(100)),
}));

const hidden = (gate: Matrix, up: Matrix): Matrix => {
  const [g, u] = [times(inputs, transposed(gate)), times(inputs, transposed(up))];
  return build(tokens, p, (t, k) => (at(g, t, k) / (1 + Math.exp(-at(g, t, k)))) * at(u, t, k) * at(importance, t, 0));
};
const norm = (M: Matrix): number => Math.hypot(...M.flat());
const mean = (M: Matrix): number => M.reduce((sum, _, i) => sum + at(M, i, i), 0) / M.length;
const plus = (A: Matrix, share: number): Matrix =>
  build(A.length, A.length, (i, j) => at(A, i, j) + share * Number(i === j));

describe('the repair of down_proj', async () => {
  const repair = await createDownRepair(engine, { rows: p, cols: d, gated: true });
  afterAll(() => repair.dispose());
  const [gate, up, down] = [normals(p, d), normals(p, d), normals(d, p)];
  const noisy = (M: Matrix): Matrix => {
    const noise = normals(p, d);
    return reshaped(flat(build(p, d, (i, j) => at(M, i, j) + 0.3 * at(noise, i, j))), p, d);
  };
  const [gate1, up1] = [noisy(gate), noisy(up)];
  const [h0, h1] = [hidden(gate, up), hidden(gate1, up1)];

  const repaired = async (): Promise<Matrix> => {
    repair.begin({ gate: flat(gate), up: flat(up) }, { gate: flat(gate1), up: flat(up1) });
    for (const batch of batches) await repair.add(batch);
    return reshaped(await repair.solve(flat(down)), d, p);
  };

  test('is the solution of the equation, computed directly in f64', async () => {
    const H = times(transposed(h1), h1);
    const ridge = 0.1 * mean(H);
    const expected = product(down, plus(times(transposed(h0), h1), ridge), inverse(plus(H, ridge)));
    expect(norm(minus(await repaired(), expected)) / norm(expected)).toBeLessThan(1e-5);
  });

  test('brings the outputs nearer to those before, and a second expert does not see the first', async () => {
    const outputError = (D: Matrix): number => norm(minus(times(h0, transposed(down)), times(h1, transposed(D))));
    const first = await repaired();
    expect(outputError(first)).toBeLessThan(0.9 * outputError(down));
    expect(await repaired()).toEqual(first);
  });

  test('of experts without a gate follows their own hidden activations', async () => {
    const plain = await createDownRepair(engine, { rows: p, cols: d, gated: false });
    const activated = (M: Matrix): Matrix => {
      const u = times(inputs, transposed(M));
      return build(tokens, p, (t, k) => (at(u, t, k) / (1 + Math.exp(-at(u, t, k)))) * at(importance, t, 0));
    };
    plain.begin({ up: flat(up) }, { up: flat(up1) });
    for (const batch of batches) await plain.add(batch);
    const [a0, a1] = [activated(up), activated(up1)];
    const H = times(transposed(a1), a1);
    const ridge = 0.1 * mean(H);
    const expected = product(down, plus(times(transposed(a0), a1), ridge), inverse(plus(H, ridge)));
    const found = reshaped(await plain.solve(flat(down)), d, p);
    await plain.dispose();
    expect(norm(minus(found, expected)) / norm(expected)).toBeLessThan(1e-5);
  });

  test('leaves down_proj as it is if gate and up did not change, or no token counts', async () => {
    repair.begin({ gate: flat(gate), up: flat(up) }, { gate: flat(gate), up: flat(up) });
    for (const batch of batches) await repair.add(batch);
    expect(await repair.solve(flat(down))).toEqual(flat(down));
    repair.begin({ gate: flat(gate), up: flat(up) }, { gate: flat(gate1), up: flat(up1) });
    expect(await repair.solve(flat(down))).toEqual(flat(down));
  });
});
