import { expect, test } from 'vitest';
import { remainingShare } from './expected-error.js';

const losses = (most: number, loss: (step: number) => number) =>
  Array.from({ length: most }, (_, i) => [i + 1, loss(i + 1)] as const);

test('a loss that falls with the root of the steps is continued', () => {
  const loss = (step: number): number => 0.02 + 0.1 * step ** -0.5;
  expect(remainingShare(losses(40, loss), 600)).toBeCloseTo(loss(600) / loss(40), 12);
  expect(remainingShare(losses(40, loss), 40)).toBe(1);
});

test('thinned losses do', () => {
  const loss = (step: number): number => 0.3 + step ** -0.5;
  const thinned = losses(40, loss).filter(([step]) => [1, 2, 4, 8, 17, 40].includes(step));
  expect(remainingShare(thinned, 600)).toBeCloseTo(loss(600) / loss(40), 12);
});

test('losses of a fit of the trained fixture at 21 bases, whose error nearly vanishes, leave a tenth', () => {
  expect(
    remainingShare(
      [
        [1, 0.4486],
        [20, 0.0276],
        [40, 0.0165],
      ],
      600,
    ),
  ).toBe(0.1);
});

test('a loss that does not fall, or a single point, leaves all', () => {
  expect(
    remainingShare(
      losses(40, () => 0.5),
      600,
    ),
  ).toBe(1);
  expect(remainingShare([[1, 0.4]], 600)).toBe(1);
  expect(remainingShare([], 600)).toBe(1);
});
