import { describe, expect, test } from 'vitest';
import { TINY_MODEL } from '../../fixtures/paths.js';
import { openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { OptionError } from '../errors.js';
import { denseParameters, groupParameters } from '../methods/parameters.js';
import { detectModel } from '../models/detect.js';
import { PROJECTIONS, type Projection } from '../models/family.js';
import {
  type AllocationInput,
  allocate,
  curveBases,
  curveLayer,
  type ErrorCurve,
  errorAt,
  partsOf,
} from './allocate.js';
import { planGroups, projectionKey } from './group-plan.js';
import { type CompressOptions, resolveSettings } from './settings.js';

const model = detectModel(await openCheckpoint(TINY_MODEL));

/** A wanted allocation for the trained fixture: sensitivities by layer, alike in all projections. */
function input(sensitivities: readonly number[], options: CompressOptions = {}): AllocationInput {
  const settings = resolveSettings({ bases: 12, projections: [...PROJECTIONS], ...options });
  const parts = partsOf(planGroups(model, settings));
  const all = model.layers.flatMap(({ experts }) => Object.values(experts).flat());
  const expertParameters = all.reduce((sum, { rows, cols }) => sum + rows * cols, 0);
  const inParts = parts.reduce((sum, { problem, groups }) => sum + groups * denseParameters(problem), 0);
  const curve: ErrorCurve = [
    [3, 0.142],
    [6, 0.081],
    [12, 0.025],
    [21, 0.0004],
  ];
  return {
    ...{ parts, measure: 'output', expertParameters, denseParameters: expertParameters - inParts },
    sensitivities: new Map(parts.map((part) => [projectionKey(part), sensitivities[part.layer] as number])),
    remaining: new Map(),
    curves: new Map(PROJECTIONS.map((projection) => [projection as Projection, curve])),
  };
}

/** The parameters of a plan with the allocation that is decided for these options. */
function planned(options: CompressOptions, allocation: ReturnType<typeof allocate>): number {
  const all = resolveSettings({ projections: [...PROJECTIONS], allocate: 'error', ...options, allocation });
  return planGroups(model, all).reduce((sum, group) => sum + groupParameters(group), 0);
}

test('the size is that of the same number of bases everywhere, and what is planned from it has it', () => {
  const wanted = input([1, 2, 4, 8]);
  const allocation = allocate(wanted);
  const limit = wanted.parts.reduce((sum, part) => sum + groupParameters(part), 0);
  const dense = allocation.projections.filter(({ bases }) => bases === 'dense').length;
  const size = planned({}, allocation) + dense * denseParameters((wanted.parts[0] as (typeof wanted.parts)[0]).problem);
  expect(size).toBeLessThanOrEqual(limit);
  expect(size).toBeGreaterThan(0.995 * limit);
});

test('more sensitive layers get more bases, and the same input the same allocation', () => {
  const { projections } = allocate(input([1, 2, 4, 8]));
  const gates = projections.filter(({ projection }) => projection === 'gate_proj').map(({ bases }) => bases);
  const numbers = gates.map((bases) => (bases === 'dense' ? 99 : bases));
  expect(numbers).toEqual([...numbers].sort((a, b) => a - b));
  expect(new Set(numbers).size).toBeGreaterThan(2);
  expect(allocate(input([1, 2, 4, 8])).projections).toEqual(projections);
});

test('the predicted loss is the sum of its shares, and less than that of the same number everywhere', () => {
  const { projections, predicted } = allocate(input([1, 2, 4, 8]));
  expect(projections.reduce((sum, it) => sum + (it.predicted as number), 0)).toBeCloseTo(predicted as number, 12);
  expect(predicted).toBeLessThan(3 * (1 + 2 + 4 + 8));
  expect(projections.every(({ probeBases }) => probeBases === 12)).toBe(true);
});

test('a share to keep counts the experts that are not factorised', () => {
  const allocation = allocate({ ...input([1, 2, 4, 8], { projections: ['gate_proj', 'up_proj'] }), keep: 0.76 });
  const { expertParameters } = input([1, 2, 4, 8]);
  const dense = allocation.projections.filter(({ bases }) => bases === 'dense').length;
  const share =
    (planned({ projections: ['gate_proj', 'up_proj'] }, allocation) + ((4 + dense) * expertParameters) / 12) /
    expertParameters;
  expect(share).toBeLessThanOrEqual(0.76);
  expect(share).toBeGreaterThan(0.75);
});

test('a loss decides the smallest size whose prediction is not above it', () => {
  const wanted = input([1, 2, 4, 8]);
  const { predicted, curve = [] } = allocate({ ...wanted, maxLoss: 20 });
  expect(predicted).toBeLessThanOrEqual(20);
  const [, before] = curve.filter(([, loss]) => loss > 20).at(-1) as [number, number];
  expect(before).toBeGreaterThan(20);
  expect(allocate({ ...wanted, maxLoss: 60 }).predicted).toBeGreaterThan(20);
  expect(() => allocate({ ...wanted, maxLoss: 1e-9 })).toThrow(OptionError);
});

test('too small a share is refused, with the least that is possible', () => {
  expect(() => allocate({ ...input([1, 2, 4, 8]), keep: 0.4 })).toThrow(/^--keep: .*Use --keep 0\.4\d/);
  const least = Number(/Use --keep (\S+),/.exec(messageOf(() => allocate({ ...input([1, 2, 4, 8]), keep: 0.4 })))?.[1]);
  expect(allocate({ ...input([1, 2, 4, 8]), keep: least }).projections).toHaveLength(12);
});

function messageOf(run: () => unknown): string {
  try {
    run();
  } catch (error) {
    return (error as Error).message;
  }
  return '';
}

test('with groups, bases are multiples of their number', () => {
  const { projections } = allocate(input([1, 2, 4, 8], { groups: 4 }));
  const numbers = projections.flatMap(({ bases }) => (bases === 'dense' ? [] : [bases % 4]));
  expect(new Set(numbers)).toEqual(new Set([0]));
});

test('the curve is found between the fewest and the most bases, in a middle layer', () => {
  const { parts } = input([1, 1, 1, 1]);
  const [part] = parts as [(typeof parts)[0]];
  expect(curveBases(part)).toEqual({ least: 3, usual: 12, most: 21 });
  expect(curveLayer(parts)).toBe(2);
});

describe('the error at a number of bases', () => {
  const curve = [
    [4, 0.1],
    [8, 0.01],
  ] as const;
  test('is interpolated in its logarithm', () => {
    expect(errorAt(curve, 4)).toBeCloseTo(0.1);
    expect(errorAt(curve, 6)).toBeCloseTo(0.1 * 10 ** -0.5);
    expect(errorAt(curve, 8)).toBeCloseTo(0.01);
  });
  test('goes on beyond the ends', () => {
    expect(errorAt(curve, 12)).toBeCloseTo(0.001);
    expect(errorAt([[4, 0.1]], 9)).toBe(0.1);
  });
});
