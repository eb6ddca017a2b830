import { describe, expect, test } from 'vitest';
import { createRandom } from '../linalg/random.js';
import { type SizeChoice, type SpreadProjection, samplePath, spreadBases, usefulChoices } from './spread-bases.js';

/** Sizes 1, 2, … of one parameter each, with these losses; then dense, with `dense` parameters. */
const projection = (layer: number, losses: readonly number[], dense?: number): SpreadProjection => ({
  layer,
  projection: 'gate_proj',
  choices: [
    ...losses.map((loss, i) => ({ bases: i + 1, size: i + 1, loss })),
    ...(dense === undefined ? [] : [{ bases: 'dense', size: dense, loss: 0 } as const]),
  ],
});
const basesOf = (...args: Parameters<typeof spreadBases>) => spreadBases(...args).chosen.map(({ bases }) => bases);

describe('a parameter goes where it lowers the loss most', () => {
  const even = projection(0, [8, 4, 2, 1]);
  const steep = projection(1, [80, 40, 20, 10]);

  test('until all are used', () => {
    expect(basesOf([even, steep], { size: 2 })).toEqual([1, 1]);
    expect(basesOf([even, steep], { size: 5 })).toEqual([1, 4]);
    expect(basesOf([even, steep], { size: 7 })).toEqual([3, 4]);
    expect(spreadBases([even, steep], { size: 7 })).toMatchObject({ size: 7, loss: 12 });
  });

  test('until the loss is small enough', () => {
    expect(spreadBases([even, steep], { loss: 30 })).toMatchObject({ size: 4, loss: 28 });
    expect(spreadBases([even, steep], { loss: 28 }).loss).toBe(28);
  });

  test('to the first of equal projections', () => {
    expect(basesOf([even, even], { size: 3 })).toEqual([2, 1]);
  });
});

test('the dense form is reached over sizes that gain little', () => {
  expect(basesOf([projection(0, [10, 9.9, 9.8], 5), projection(1, [10, 8.5, 8], 9)], { size: 7 })).toEqual([
    'dense',
    2,
  ]);
});

test('a step that does not fit leaves room for a smaller one', () => {
  expect(basesOf([projection(0, [100, 99], 50), projection(1, [2, 1])], { size: 4 })).toEqual([2, 2]);
});

test('no parameter is spent on a size that is not better', () => {
  expect(spreadBases([projection(0, [5, 5, 6])], {})).toMatchObject({ size: 1, loss: 5 });
});

test('the path falls from the smallest sizes to all dense, and is sampled with its ends', () => {
  const all = [projection(0, [9, 5, 4], 6), projection(1, [20, 11, 7], 5)];
  const { path, loss } = spreadBases(all, {});
  expect(loss).toBe(0);
  expect(path[0]).toEqual([2, 29]);
  expect(path.at(-1)).toEqual([11, 0]);
  for (const [i, [size, after]] of path.slice(1).entries()) {
    expect(size).toBeGreaterThan(path[i]?.[0] as number);
    expect(after).toBeLessThan(path[i]?.[1] as number);
  }
  const few = samplePath(path, 3);
  expect(few.length).toBeLessThanOrEqual(3);
  expect([few[0], few.at(-1)]).toEqual([path[0], path.at(-1)]);
});

describe('against all combinations of choices', () => {
  const random = createRandom(3);
  /** Choices as those of bases in several dtypes: neither their sizes nor their losses are in order. */
  const randomChoices = (): SizeChoice[] =>
    Array.from({ length: 2 + random.below(6) }, (_, i) => {
      const size = 1 + random.below(40);
      return { bases: i + 1, size, loss: (20 * random.uniform()) / size };
    });
  const instances = Array.from({ length: 60 }, () =>
    [0, 1, 2].map((layer): SpreadProjection => ({ ...projection(layer, []), choices: randomChoices() })),
  );
  const useful = (all: readonly SpreadProjection[]): SpreadProjection[] =>
    all.map((it) => ({ ...it, choices: usefulChoices(it.choices) }));
  /** The least loss of any combination that is no larger than `size`. */
  const least = ([first, ...others]: readonly SpreadProjection[], size: number): number =>
    first
      ? Math.min(
          ...first.choices.filter((it) => it.size <= size).map((it) => it.loss + least(others, size - it.size)),
          Number.POSITIVE_INFINITY,
        )
      : 0;

  test('each step of the path has the least loss of its size', () => {
    for (const all of instances)
      for (const [size, loss] of spreadBases(useful(all), {}).path) expect(loss).toBeCloseTo(least(all, size), 10);
  });

  test('within a limit the loss is between the least and that of the last step that fits, and mostly the least', () => {
    let [exact, count] = [0, 0];
    for (const all of instances) {
      const path = spreadBases(useful(all), {}).path;
      const [smallest, largest] = [path[0]?.[0] as number, path.at(-1)?.[0] as number];
      for (let size = smallest; size < largest; size += 3) {
        const { loss, size: used } = spreadBases(useful(all), { size });
        expect(used).toBeLessThanOrEqual(size);
        const best = least(all, size);
        expect(loss).toBeGreaterThan(best - 1e-10);
        expect(loss).toBeLessThanOrEqual(path.filter((it) => it[0] <= size).at(-1)?.[1] as number);
        if (loss < best + 1e-10) exact++;
        count++;
      }
    }
    expect(exact / count).toBeGreaterThan(0.5);
  });
});
