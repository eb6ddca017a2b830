import fc from 'fast-check';
import { expect, test } from 'vitest';
import { axisOf, type ScaleKind } from './axis.js';

const texts = (kind: ScaleKind, values: readonly number[], count = 5): string[] =>
  axisOf(kind, values, [0, 100], count).ticks.map(({ text }) => text);

test('ticks are round numbers', () => {
  expect(texts('from zero', [0.0689, 0.2756])).toEqual(['0.00', '0.05', '0.10', '0.15', '0.20', '0.25', '0.30']);
  expect(texts('from zero', [3.67])).toEqual(['0', '1', '2', '3', '4']);
  expect(texts('linear', [1.3, 2.9])).toEqual(['1.5', '2.0', '2.5']);
  expect(texts('from zero', [5200.5])).toEqual(['0', '1,000', '2,000', '3,000', '4,000', '5,000', '6,000']);
});

test('logarithmic ticks are 1, 2 and 5 times powers of ten, over wide spans powers only, over narrow ones even', () => {
  expect(texts('logarithmic', [0.04, 2.3])).toEqual(['0.05', '0.1', '0.2', '0.5', '1', '2']);
  expect(texts('logarithmic', [1, 250])).toEqual(['1', '2', '5', '10', '20', '50', '100', '200']);
  expect(texts('logarithmic', [1, 2400])).toEqual(['1', '10', '100', '1,000']);
  expect(texts('logarithmic', [100, 500_000])).toEqual(['100', '1,000', '10,000', '100,000']);
  expect(texts('logarithmic', [0.0267, 0.0391])).toEqual([
    '0.026',
    '0.028',
    '0.030',
    '0.032',
    '0.034',
    '0.036',
    '0.038',
    '0.040',
  ]);
});

test('between layers there are no ticks, and one layer has one', () => {
  expect(texts('linear', [0, 1])).toEqual(['0', '1']);
  expect(texts('linear', [0, 47], 8)).toEqual(['0', '5', '10', '15', '20', '25', '30', '35', '40', '45']);
  expect(texts('linear', [7])).toEqual(['7']);
  expect(texts('logarithmic', [3])).toEqual(['3']);
  expect(texts('from zero', [0])).toEqual(['0', '1']);
});

test('every value and every tick lies on the axis, in order', () => {
  const kinds = fc.constantFrom<ScaleKind>('linear', 'from zero', 'logarithmic');
  const positive = fc.integer({ min: 1, max: 1e9 }).map((n) => n / 1000);
  fc.assert(
    fc.property(kinds, fc.array(positive, { minLength: 1 }), (kind, values) => {
      const { ticks, pixel } = axisOf(kind, values, [200, 0], 5);
      const at = [...values, ...ticks.map(({ value }) => value)].sort((a, b) => a - b).map(pixel);
      expect(at.every((y) => y >= 0 && y <= 200)).toBe(true);
      expect(at).toEqual([...at].sort((a, b) => b - a));
      expect(new Set(ticks.map(({ text }) => text)).size).toBe(ticks.length);
    }),
  );
});
