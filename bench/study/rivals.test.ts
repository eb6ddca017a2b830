import { describe, expect, test } from 'vitest';
import { createRandom } from '../../src/linalg/random.js';
import { groupedSvd, perExpertSvd, sharedBasisSvd } from '../../src/methods/svd/baselines.js';
import { addNoise, squaredDistance, squaredNorm } from './noise.js';
import {
  type Experts,
  type Factorised,
  meanAndDeltas,
  perExpert,
  type Rival,
  sharedLeft,
  sharedRight,
} from './rivals.js';

const SHAPE = { rows: 6, cols: 20 };
const COUNT = 8;
const SIZE = SHAPE.rows * SHAPE.cols;
const random = createRandom(11);
const normals = (length: number) => Float32Array.from({ length }, () => random.normal());
const group: Experts = { experts: Array.from({ length: COUNT }, () => normals(SIZE)), ...SHAPE };

const relative = ({ experts }: Experts, { experts: rebuilt }: Factorised): number => {
  const error = experts.reduce((sum, values, i) => sum + squaredDistance(values, rebuilt[i] as Float32Array), 0);
  return error / experts.reduce((sum, values) => sum + squaredNorm(values), 0);
};

/** For each method, the parameters of one unit of rank, and those that do not depend on the rank. */
const rivals: Array<[name: string, rival: Rival, perRank: number, fixed: number]> = [
  ['one right factor for all', sharedRight(1), COUNT * 6 + 20, 0],
  ['one right factor a block', sharedRight(4), COUNT * 6 + 4 * 20, 0],
  ['both factors for each expert', perExpert, COUNT * (6 + 20), 0],
  ['one left factor for all', sharedLeft, 6 + COUNT * 20, 0],
  ['the mean, and both factors of what is left', meanAndDeltas, COUNT * (6 + 20), SIZE],
];

describe.each(rivals)('%s', (_, rival, perRank, fixed) => {
  test('takes what its rank needs, and one more would be too many', () => {
    for (const budget of [fixed + 2 * perRank, fixed + 3 * perRank - 1]) {
      const { rank, parameters } = rival(group, budget);
      expect({ rank, parameters }).toEqual({ rank: 2, parameters: fixed + 2 * perRank });
    }
  });

  test('leaves nothing at full rank, and asks for no more', () => {
    const result = rival(group, 1e6);
    expect(relative(group, result)).toBeLessThan(1e-12);
    expect(result.rank).toBeLessThanOrEqual(20);
  });

  test('is nearer the more it may take', () => {
    const errors = [1, 3, 5].map((rank) => relative(group, rival(group, fixed + rank * perRank)));
    expect(errors).toEqual([...errors].sort((a, b) => b - a));
    expect(errors[0]).toBeLessThan(1);
  });
});

test('the errors are the tails of the singular values', () => {
  const budget = 600;
  const { experts, rows, cols } = group;
  const pairs = [
    [perExpert, perExpertSvd(experts, rows, cols, budget)],
    [sharedRight(4), groupedSvd(experts, rows, cols, budget, 4)],
    [sharedRight(1), sharedBasisSvd(experts, rows, cols, budget)],
  ] as const;
  for (const [rival, { rank, parameters, relativeError }] of pairs) {
    const result = rival(group, budget);
    expect(result).toMatchObject({ rank, parameters });
    expect(relative(group, result)).toBeCloseTo(relativeError ** 2, 6);
  }
});

/** (6, 2)·(2, 20) */
function lowRank(left = normals(12), right = normals(40)): Float32Array {
  return Float32Array.from({ length: SIZE }, (_, x) =>
    [0, 1].reduce(
      (sum, k) => sum + (left[Math.floor(x / 20) * 2 + k] as number) * (right[k * 20 + (x % 20)] as number),
      0,
    ),
  );
}

test('each finds the structure it is made for, at the rank it has', () => {
  const [left, right, mean] = [normals(12), normals(40), normals(SIZE)];
  const made = (make: () => Float32Array): Experts => ({ experts: Array.from({ length: COUNT }, make), ...SHAPE });
  // The deltas sum to 0, so the experts' mean is `mean`.
  const deltas = Array.from({ length: COUNT / 2 }, () => lowRank()).flatMap((it) => [it, it.map((value) => -value)]);
  const cases: Array<[Rival, Experts, number]> = [
    [sharedRight(1), made(() => lowRank(undefined, right)), 2 * (COUNT * 6 + 20)],
    [sharedLeft, made(() => lowRank(left)), 2 * (6 + COUNT * 20)],
    [perExpert, made(() => lowRank()), 2 * COUNT * 26],
    [
      meanAndDeltas,
      { experts: deltas.map((delta) => delta.map((value, x) => value + (mean[x] as number))), ...SHAPE },
      SIZE + 2 * COUNT * 26,
    ],
  ];
  for (const [rival, experts, budget] of cases) {
    expect(relative(experts, rival(experts, budget))).toBeLessThan(1e-12);
    expect(relative(group, rival(group, budget))).toBeGreaterThan(0.1);
  }
});

test('noise is as large as asked, and is that of its seed', () => {
  const weights = normals(SIZE);
  const noisy = addNoise(weights, 0.25, createRandom(3));
  expect(squaredDistance(weights, noisy)).toBeCloseTo(0.25, 5);
  expect(addNoise(weights, 0.25, createRandom(3))).toEqual(noisy);
  expect(addNoise(weights, 0.25, createRandom(4))).not.toEqual(noisy);
});
