import { afterAll, expect, test } from 'vitest';
import { plainOutputLoss } from '../../fixtures/plain-output-loss.js';
import { createEngine } from '../engine/create-engine.js';
import { Runner } from '../inference/runner.js';
import { createRandom } from '../linalg/random.js';
import { outputLosses } from './output-loss.js';

const runner = new Runner(await createEngine('onnx-cpu', { threads: 1 }));
afterAll(() => runner.dispose());

const random = createRandom(3);
const WIDTH = 12;
const TOKENS = 200;
const rows = (of: (column: number) => number): number[][] =>
  Array.from({ length: TOKENS }, () => Array.from({ length: WIDTH }, (_, i) => of(i) * random.normal()));
const flat = (of: readonly number[][]): Float32Array => Float32Array.from(of.flat());
const scale = Float32Array.from({ length: TOKENS }, () => 0.5 + random.uniform());
/** The layer writes into the first three columns. */
const outputs = rows((column) => (column < 3 ? 1 : 0.01));

test('losses are those of plain arithmetic, also if the covariance is computed in blocks', async () => {
  const wide = [1, 2].map(() => Array.from({ length: 4 }, () => Array.from({ length: 1030 }, () => random.normal())));
  const [y, dy] = wide as [number[][], number[][]];
  const [found] = await outputLosses(runner, flat(y), [flat(dy)], scale.subarray(0, 4));
  expect(found).toBeCloseTo(plainOutputLoss(y, dy, scale), 6);
});

test('a change outside of what the layer writes counts little, one of its shape counts its relative square', async () => {
  const inside = rows((column) => (column < 3 ? 0.1 : 0.001));
  const outside = rows((column) => (column < 3 ? 0 : 0.1));
  const ones = new Float32Array(TOKENS).fill(1);
  const [in_, out] = await outputLosses(runner, flat(outputs), [flat(inside), flat(outside)], ones);
  const square = (of: number[][]): number => of.flat().reduce((sum, it) => sum + it ** 2, 0) / TOKENS / WIDTH;
  expect((in_ as number) / square(inside)).toBeCloseTo(1, 1);
  expect((out as number) / square(outside)).toBeLessThan(0.1);
});

test('one token has no covariance, so all directions count the same', async () => {
  const [loss] = await outputLosses(runner, Float32Array.of(1, 2), [Float32Array.of(3, 4)], Float32Array.of(0.5));
  expect(loss).toBeCloseTo(25 / 4 / 2, 5);
});
