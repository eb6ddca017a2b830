import { expect, test } from 'vitest';
import { bestSoFar, reach, thin } from './levels.js';
import { decodeNpy, encodeNpy } from './npy.js';

const RUNS = [
  { planned: 50, seconds: 1, loss: 0.5 },
  { planned: 100, seconds: 2, loss: 0.3 },
  { planned: 200, seconds: 4, loss: 0.2 },
];

test('a level is reached by the first run that ends at or below it', () => {
  expect(reach({ at: 100, loss: 0.3, seconds: 10 }, RUNS)).toMatchObject({ ours: { planned: 100 }, share: 0.2 });
  expect(reach({ at: 100, loss: 0.3 }, RUNS)).not.toHaveProperty('share');
  expect(reach({ at: 'last', loss: 0.1, seconds: 10 }, RUNS)).not.toHaveProperty('ours');
});

test('a curve is thinned from its first point to its last, and never rises once it is the best so far', () => {
  const items = Array.from({ length: 10_000 }, (_, i) => i);
  const thinned = thin(items, 100);
  expect(thinned.length).toBeLessThanOrEqual(100);
  expect([thinned[0], thinned.at(-1)]).toEqual([0, 9999]);
  expect(thin([7], 100)).toEqual([7]);
  expect(thin([], 100)).toEqual([]);
  const curve = bestSoFar(RUNS.map(({ seconds }, i) => [seconds, [2, 3, 1][i] as number]));
  expect(curve.map(([, loss]) => loss)).toEqual([2, 2, 1]);
});

test('an array file holds what was put in', () => {
  const parts = [Float32Array.of(1, 2, 3), Float32Array.of(4, 5, 6)];
  expect(decodeNpy(encodeNpy(parts, [2, 3]))).toEqual({ parts, shape: [2, 3] });
});
