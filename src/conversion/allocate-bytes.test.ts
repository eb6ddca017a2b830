import { describe, expect, test } from 'vitest';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { OptionError } from '../errors.js';
import type { StoredDtypes } from '../methods/factor-storage.js';
import { detectModel } from '../models/detect.js';
import type { Projection } from '../models/family.js';
import { type ErrorCurve, errorAt, partsOf } from './allocate.js';
import { allocateBytes, type BytesAllocationInput, factorBytes } from './allocate-bytes.js';
import type { BytesPart } from './expert-bytes.js';
import { planGroups, projectionKey } from './group-plan.js';
import { resolveSettings } from './settings.js';

const model = detectModel(await openCheckpoint(TINY_MODEL));
const DENSE = 32 * 64 * 192;

const INT8: StoredDtypes = { own: { code: 'int8', scaleGroup: 64 }, shared: { code: 'int8', scaleGroup: 64 } };
const INT5: StoredDtypes = { own: { code: 'int5', scaleGroup: 64 }, shared: { code: 'int6', scaleGroup: 64 } };
const INT4: StoredDtypes = { own: { code: 'int4', scaleGroup: 64 }, shared: { code: 'int5', scaleGroup: 64 } };
const BF16: StoredDtypes = { own: 'BF16', shared: 'BF16' };
const NOISE = new Map([
  [BF16, 0],
  [INT8, 0.0005],
  [INT5, 0.014],
  [INT4, 0.03],
]);

const curve: ErrorCurve = [
  [3, 0.142],
  [6, 0.081],
  [12, 0.025],
  [21, 0.0004],
];

/** gate_proj of the fixture's layers, with these sensitivities. */
function input(sensitivities: readonly number[], bytes: number, dtypes = [...NOISE.keys()]): BytesAllocationInput {
  const settings = resolveSettings({ bases: 12, projections: ['gate_proj'] });
  const parts = partsOf(planGroups(model, settings))
    .filter(({ layer }) => layer < sensitivities.length)
    .map((part): BytesPart => ({ ...part, dtype: 'BF16', denseBytes: 2 * DENSE }));
  return {
    ...{ parts, dtypesOf: () => dtypes, measure: 'error', fixed: 0, weights: parts.length * DENSE },
    limit: { option: '--keep-bytes', bytes, unit: parts.length * 2 * DENSE },
    sensitivities: new Map(parts.map((part) => [projectionKey(part), sensitivities[part.layer] as number])),
    remaining: new Map(),
    curves: new Map([['gate_proj' as Projection, curve]]),
    storageError: (stored) => NOISE.get(stored) as number,
  };
}

test('a factor takes its codes, its scales and the coefficients', () => {
  const [part] = input([1], 0).parts as [BytesPart];
  // A: 32 of 64 × 64, B: 12 of 64 × 192, α: 32 × 12.
  expect(factorBytes(part, 12, BF16)).toBe(2 * (32 * 64 * 64 + 12 * 64 * 192 + 32 * 12));
  expect(factorBytes(part, 12, INT8)).toBe(32 * 64 * (64 + 2) + 12 * 64 * (192 + 6) + 2 * 32 * 12);
  // Rows of 64 columns in 5 bits fill 10 words, 192 in 6 bits 36.
  expect(factorBytes(part, 12, INT5)).toBe(32 * 64 * (40 + 2) + 12 * 64 * (144 + 6) + 2 * 32 * 12);
});

describe('an allocation of bytes', () => {
  test('uses the bytes and no more, and says what each projection takes', () => {
    const budget = 0.2 * 4 * 2 * DENSE;
    const { projections, bytes = 0, predicted = 0, weights, curve = [] } = allocateBytes(input([1, 2, 4, 8], budget));
    expect(weights).toBe(4 * DENSE);
    // Bits a weight: up to the dense form of all.
    expect(curve.at(-1)).toEqual([16, 0]);
    expect(bytes).toBeLessThanOrEqual(budget);
    expect(bytes).toBeGreaterThan(0.98 * budget);
    expect(projections.reduce((sum, it) => sum + (it.bytes ?? 0), 0)).toBe(bytes);
    expect(projections.reduce((sum, it) => sum + (it.predicted ?? 0), 0)).toBeCloseTo(predicted, 12);
    const { parts } = input([1, 2, 4, 8], budget);
    for (const [i, { bases, stored, bytes: own }] of projections.entries())
      expect(own).toBe(
        bases === 'dense' ? 2 * DENSE : factorBytes(parts[i] as BytesPart, bases, stored as StoredDtypes),
      );
  });

  test('gives fewer bits to factors as bytes get fewer, and to projections that matter less', () => {
    /** The place of each projection's dtypes, from the fewest bits on. */
    const placesAt = (share: number): number[] =>
      allocateBytes(input([1, 1, 30, 30], share * 4 * 2 * DENSE)).projections.map(({ bases, stored }) => {
        return bases === 'dense' || !stored ? 4 : [INT4, INT5, INT8, BF16].indexOf(stored);
      });
    const sum = (values: number[]): number => values.reduce((a, b) => a + b, 0);
    expect(sum(placesAt(0.18))).toBeLessThan(sum(placesAt(0.25)));
    expect(sum(placesAt(0.25))).toBeLessThan(sum(placesAt(0.4)));
    const [first, second, third, last] = placesAt(0.25) as [number, number, number, number];
    expect(first + second).toBeLessThan(third + last);
  });

  test('predicts less than bases alone in any one of the dtypes, at equal bytes', () => {
    for (const share of [0.17, 0.2, 0.3]) {
      const budget = share * 4 * 2 * DENSE;
      const both = allocateBytes(input([1, 2, 4, 8], budget)).predicted as number;
      for (const dtypes of [INT8, INT5, INT4])
        try {
          expect(both).toBeLessThanOrEqual(allocateBytes(input([1, 2, 4, 8], budget, [dtypes])).predicted as number);
        } catch (error) {
          // In eight bits the smallest sizes need not fit.
          if (!(error instanceof OptionError)) throw error;
        }
    }
  });

  test('predicts nearly the least loss of all combinations', () => {
    const numbers = Array.from({ length: 20 }, (_, i) => 3 + i);
    for (const share of [0.16, 0.2, 0.25, 0.35]) {
      const budget = share * 2 * 2 * DENSE;
      const wanted = input([1, 5], budget);
      const [first, second] = wanted.parts.map((part, i) => [
        { size: 2 * DENSE, loss: 0 },
        ...numbers.flatMap((bases) =>
          [...NOISE.keys()].map((stored) => ({
            size: factorBytes(part, bases, stored),
            loss: ([1, 5][i] as number) * ((errorAt(curve, bases) + (NOISE.get(stored) as number)) / 0.025),
          })),
        ),
      ]) as [Array<{ size: number; loss: number }>, Array<{ size: number; loss: number }>];
      let best = Number.POSITIVE_INFINITY;
      for (const a of first)
        for (const b of second) if (a.size + b.size <= budget) best = Math.min(best, a.loss + b.loss);
      const { predicted } = allocateBytes(wanted);
      expect(predicted).toBeGreaterThan(best - 1e-9);
      expect(predicted).toBeLessThan(1.05 * best);
    }
  });

  test('of too few bytes is refused with the least value of the option, which is possible', () => {
    const unit = 4 * 2 * DENSE;
    let least = Number.NaN;
    try {
      allocateBytes(input([1, 1, 1, 1], 1000));
    } catch (error) {
      expect(error).toBeInstanceOf(OptionError);
      const told = /--keep-bytes: the smallest sizes .* Use --keep-bytes ([\d.]+) or more/.exec(String(error));
      least = Number(told?.[1]);
    }
    expect(allocateBytes(input([1, 1, 1, 1], Math.floor(least * unit))).bytes).toBeLessThanOrEqual(least * unit);
    expect(() => allocateBytes(input([1, 1, 1, 1], Math.floor((least - 0.0001) * unit)))).toThrow(OptionError);
  });

  test('of so many bytes that nothing is compressed is refused', () => {
    expect(() => allocateBytes(input([1, 1], 2 * 2 * DENSE))).toThrow(/--keep-bytes: .* uncompressed/);
  });

  test('leaves to the other projections what dense ones take', () => {
    const all = input([1, 1], 0.3 * 2 * 2 * DENSE);
    const { bytes } = allocateBytes({ ...all, fixed: 0.1 * 2 * 2 * DENSE, parts: all.parts.slice(0, 1) });
    expect(bytes).toBeLessThanOrEqual(all.limit.bytes);
    expect(bytes).toBeGreaterThan(0.98 * all.limit.bytes);
  });
});
