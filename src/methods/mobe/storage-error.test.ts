import { expect, test } from 'vitest';
import { QUANTISED_NAMES, type QuantisedName } from '../../checkpoint/factor-dtype.js';
import { storageError } from './storage-error.js';

const coded = (code: QuantisedName) => ({ code, scaleGroup: 64 });
const alike = (code: QuantisedName) => ({ own: coded(code), shared: coded(code) });

test('floats add nothing, and fewer bits add more', () => {
  for (const inMetric of [false, true]) {
    expect(storageError({ own: 'BF16', shared: 'BF16' }, 0.04, inMetric)).toBe(0);
    const added = QUANTISED_NAMES.map((code) => storageError(alike(code), 0.04, inMetric));
    expect(added).toEqual([...added].sort((a, b) => a - b));
  }
});

test('the coarser of the two dtypes counts', () => {
  const preset = storageError({ own: coded('int5'), shared: coded('int6') }, 0.04, false);
  expect(storageError({ own: coded('int5'), shared: coded('int8') }, 0.04, false)).toBe(preset);
  expect(storageError({ own: coded('int8'), shared: coded('int4') }, 0.04, false)).toBe(
    storageError(alike('int4'), 0.04, false),
  );
  expect(storageError({ own: 'BF16', shared: coded('int6') }, 0.04, false)).toBeGreaterThan(0);
});

/** Relative squared errors of layer 1 gate_proj of the fixture, 300 steps: of bf16 factors, and what int5 adds. docs/solver.md. */
test.each([
  [4, 0.0856, 0.00936],
  [8, 0.0424, 0.00702],
  [16, 0.00739, 0.00444],
])('with %i bases it is what was measured, within a quarter', (_, exact, added) => {
  const told = storageError({ own: coded('int5'), shared: coded('int6') }, exact, false);
  expect(Math.abs(Math.log(told / added))).toBeLessThan(Math.log(1.25));
});
