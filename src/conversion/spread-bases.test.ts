import { describe, expect, test } from 'vitest';
import { type SpreadProjection, samplePath, spreadBases } from './spread-bases.js';

/** Sizes 1, 2, … of one parameter each, with these losses; then dense, with `dense` parameters. */
const projection = (layer: number, losses: readonly number[], dense?: number): SpreadProjection => ({
  layer,
  projection: 'gate_proj',
  choices: [
    ...losses.map((loss, i) => ({ bases: i + 1, parameters: i + 1, loss })),
    ...(dense === undefined ? [] : [{ bases: 'dense', parameters: dense, loss: 0 } as const]),
  ],
});
const basesOf = (...args: Parameters<typeof spreadBases>) => spreadBases(...args).chosen.map(({ bases }) => bases);

describe('a parameter goes where it lowers the loss most', () => {
  const even = projection(0, [8, 4, 2, 1]);
  const steep = projection(1, [80, 40, 20, 10]);

  test('until all are used', () => {
    expect(basesOf([even, steep], { parameters: 2 })).toEqual([1, 1]);
    expect(basesOf([even, steep], { parameters: 5 })).toEqual([1, 4]);
    expect(basesOf([even, steep], { parameters: 7 })).toEqual([3, 4]);
    expect(spreadBases([even, steep], { parameters: 7 })).toMatchObject({ parameters: 7, loss: 12 });
  });

  test('until the loss is small enough', () => {
    expect(spreadBases([even, steep], { loss: 30 })).toMatchObject({ parameters: 4, loss: 28 });
    expect(spreadBases([even, steep], { loss: 28 }).loss).toBe(28);
  });

  test('to the first of equal projections', () => {
    expect(basesOf([even, even], { parameters: 3 })).toEqual([2, 1]);
  });
});

test('the dense form is reached over sizes that gain little', () => {
  expect(basesOf([projection(0, [10, 9.9, 9.8], 5), projection(1, [10, 8.5, 8], 9)], { parameters: 7 })).toEqual([
    'dense',
    2,
  ]);
});

test('a step that does not fit leaves room for a smaller one', () => {
  expect(basesOf([projection(0, [100, 99], 50), projection(1, [2, 1])], { parameters: 4 })).toEqual([2, 2]);
});

test('no parameter is spent on a size that is not better', () => {
  expect(spreadBases([projection(0, [5, 5, 6])], {})).toMatchObject({ parameters: 1, loss: 5 });
});

test('the path falls from the smallest sizes to all dense, and is sampled with its ends', () => {
  const all = [projection(0, [9, 5, 4], 6), projection(1, [20, 11, 7], 5)];
  const { path, loss } = spreadBases(all, {});
  expect(loss).toBe(0);
  expect(path[0]).toEqual([2, 29]);
  expect(path.at(-1)).toEqual([11, 0]);
  for (const [i, [parameters, after]] of path.slice(1).entries()) {
    expect(parameters).toBeGreaterThan(path[i]?.[0] as number);
    expect(after).toBeLessThan(path[i]?.[1] as number);
  }
  const few = samplePath(path, 3);
  expect(few.length).toBeLessThanOrEqual(3);
  expect([few[0], few.at(-1)]).toEqual([path[0], path.at(-1)]);
});
