import { expect, test } from 'vitest';
import { divergence, predict, squaredDifference } from './scores.js';

const logs = (...probabilities: number[]) => predict(Float32Array.from(probabilities, (p) => Math.log(p) + 7));

test('log-probabilities add up to 1 whatever was added to the logits, and large logits do not overflow', () => {
  const { logProbabilities, mostLikely } = logs(0.5, 0.3, 0.2);
  expect(mostLikely).toBe(0);
  for (const [i, p] of [0.5, 0.3, 0.2].entries()) expect(Math.exp(logProbabilities[i] as number)).toBeCloseTo(p, 6);
  expect([...predict(Float32Array.of(5000, 0, 5000)).logProbabilities].map(Math.fround)).toEqual(
    [-Math.log(2), -5000 - Math.log(2), -Math.log(2)].map(Math.fround),
  );
});

test('the divergence is Σ p·log(p/q): not symmetric, and 0 from itself', () => {
  const [p, q] = [logs(0.5, 0.3, 0.2), logs(0.2, 0.2, 0.6)];
  expect(divergence(p, q)).toBeCloseTo(0.5 * Math.log(2.5) + 0.3 * Math.log(1.5) + 0.2 * Math.log(1 / 3), 6);
  expect(divergence(q, p)).not.toBeCloseTo(divergence(p, q), 2);
  expect(divergence(p, p)).toBe(0);
});

test('what the truth rules out does not count', () => {
  expect(divergence(predict(Float32Array.of(0, -1e4)), logs(0.5, 0.5))).toBeCloseTo(Math.log(2), 6);
});

test('squares of differences and of the second', () => {
  expect(squaredDifference(Float32Array.of(1, 2, 3), Float32Array.of(1, 4, 0))).toEqual({ error: 13, norm: 17 });
});
