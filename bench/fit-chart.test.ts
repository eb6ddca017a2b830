import { expect, test } from 'vitest';
import { pageFaults } from '../fixtures/page.js';
import { fitChart } from './fit-chart.js';
import type { Point } from './levels.js';

const ours = [
  { seconds: 1, loss: 0.5 },
  { seconds: 2, loss: 0.3 },
  { seconds: 4, loss: 0.2 },
];
const curve: Point[] = [
  [0.1, 1],
  [20, 0.25],
];
const raced = {
  subject: 'with',
  activation: 'silu' as const,
  ours,
  reference: { curve },
  levels: [{ at: 100, loss: 0.25 }],
};

test('a race has a chart, with a reference or without', () => {
  const svg = fitChart(
    [
      { ...raced, subject: 'a & b' },
      { subject: 'without', activation: 'silu', ours, levels: [] },
      { subject: 'one point', activation: 'tanh', ours: ours.slice(0, 1), levels: [] },
    ],
    1,
  );
  for (const title of ['a &amp; b, silu', 'without, silu', 'one point, tanh'])
    expect(svg).toContain(`>${title}</text>`);
  expect(pageFaults(svg)).toEqual([]);
});

test('losses above three times the least are not shown', () => {
  const drawn = (svg: string): number => svg.match(/<circle/g)?.length ?? 0;
  expect(drawn(fitChart([raced], 1))).toBe(3);
  expect(drawn(fitChart([{ ...raced, ours: [{ seconds: 0.5, loss: 0.61 }, ...ours] }], 1))).toBe(3);
  expect(drawn(fitChart([{ ...raced, ours: [{ seconds: 0.5, loss: 0.59 }, ...ours] }], 1))).toBe(4);
});

test('a twentieth and a fifth of the reference’s time are marked', () => {
  const at = (label: string): number =>
    Number(new RegExp(`x="([\\d.]+)"[^>]*>${label}<`).exec(fitChart([raced], 1))?.[1]);
  // The reference takes 20 s. A twentieth of it is the first run's time, a fifth the last run's.
  const [first, , last] = [...fitChart([raced], 1).matchAll(/<circle cx="([\d.]+)"/g)].map(([, x]) => Number(x));
  expect([at('1/20') - 3, at('1/5') - 3]).toEqual([first, last]);
});
