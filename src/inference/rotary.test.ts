import { describe, expect, test } from 'vitest';
import { expected, largestDifference } from '../../fixtures/inference.js';
import { UnsupportedModelError } from '../errors.js';
import { configReader } from './config-reader.js';
import { readRotary, rotation } from './rotary.js';

const reader = (config: Readonly<Record<string, unknown>>) => configReader({ folder: 'model', config });

describe("YaRN's frequencies are transformers':", () => {
  test.each(expected.yarn.map((it) => [JSON.stringify(it.config), it] as const))('%s', (_, it) => {
    const rotary = readRotary(reader(it.config), it.size);
    for (const [i, frequency] of it.frequencies.entries())
      expect(Math.abs((rotary.frequencies[i] as number) / frequency - 1)).toBeLessThan(1e-5);
    expect(rotary.magnitude).toBeCloseTo(it.magnitude, 12);
  });
});

test('transformers 5 keeps the same settings elsewhere', () => {
  const plain = readRotary(reader({ rope_theta: 500_000 }), 8);
  expect(readRotary(reader({ rope_parameters: { rope_type: 'default', rope_theta: 500_000 } }), 8)).toEqual(plain);
  expect(largestDifference(plain.frequencies, [1, 500_000 ** -0.25, 500_000 ** -0.5, 500_000 ** -0.75])).toBeLessThan(
    1e-8,
  );
});

test('positions go on where they are told to', () => {
  const rotary = readRotary(reader({}), 8);
  const all = rotation(rotary, 0, 10);
  expect(rotation(rotary, 7, 3).sin).toEqual(all.sin.subarray(7 * 4));
});

test('a scaling that is not known is refused by name', () => {
  const config = reader({ rope_scaling: { type: 'dynamic', factor: 2 } });
  expect(() => readRotary(config, 8)).toThrow(UnsupportedModelError);
  expect(() => readRotary(config, 8)).toThrow('"dynamic"');
});
