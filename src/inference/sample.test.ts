import { expect, test } from 'vitest';
import { createRandom, type Random } from '../linalg/random.js';
import { draw, mostLikely, sample } from './sample.js';

const LOGITS = Float32Array.from([0.6, 0.25, 0.1, 0.05], Math.log);
const DRAWS = 20_000;

const shares = (temperature: number, topP: number): number[] =>
  sharesOf((random) => sample(LOGITS, { temperature, topP }, random));

function sharesOf(choose: (random: Random) => number): number[] {
  const random = createRandom(1);
  const counts = [0, 0, 0, 0];
  for (let i = 0; i < DRAWS; i++) {
    const token = choose(random);
    counts[token] = (counts[token] as number) + 1;
  }
  return counts.map((count) => count / DRAWS);
}

/** At most five standard deviations of a measured frequency. */
const TOLERANCE = 5 * Math.sqrt(0.25 / DRAWS);

function expectShares(actual: number[], expected: number[]): void {
  for (const [i, share] of expected.entries())
    expect(Math.abs((actual[i] as number) - share)).toBeLessThan(share ? TOLERANCE : 1e-12);
}

test('temperature 0 takes the most likely token, of equal ones the first', () => {
  expect(sample(LOGITS, { temperature: 0, topP: 1 }, createRandom(0))).toBe(0);
  expect(mostLikely(Float32Array.of(1, 3, 3))).toBe(1);
});

test('temperature 1 draws tokens as often as they are likely, sorted or not', () => {
  expectShares(shares(1, 1), [0.6, 0.25, 0.1, 0.05]);
  expectShares(
    sharesOf((random) => draw(LOGITS, random)),
    [0.6, 0.25, 0.1, 0.05],
  );
});

test('a temperature of a half squares the odds', () => {
  const squares = [0.36, 0.0625, 0.01, 0.0025];
  const sum = squares.reduce((a, b) => a + b);
  expectShares(
    shares(0.5, 1),
    squares.map((it) => it / sum),
  );
});

test('top-p leaves out what is not needed to reach it', () => {
  expectShares(shares(1, 0.8), [0.6 / 0.85, 0.25 / 0.85, 0, 0]);
  expectShares(shares(1, 0.5), [1, 0, 0, 0]);
});

test('the same seed draws the same tokens', () => {
  const drawn = (seed: number) => {
    const random = createRandom(seed);
    return Array.from({ length: 50 }, () => sample(LOGITS, { temperature: 1, topP: 1 }, random));
  };
  expect(drawn(7)).toEqual(drawn(7));
  expect(drawn(7)).not.toEqual(drawn(8));
});
