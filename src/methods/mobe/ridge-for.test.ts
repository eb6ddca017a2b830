import { expect, test } from 'vitest';
import { QUANTISED_NAMES } from '../../checkpoint/factor-dtype.js';
import { ridgeFor } from './ridge-for.js';

test('the coarser the codes, the larger the ridge; floats have none of their own', () => {
  expect(ridgeFor('BF16')).toBeUndefined();
  const ridges = QUANTISED_NAMES.map((code) => ridgeFor({ code, scaleGroup: 64 }) as number);
  expect(ridges).toEqual([...ridges].sort((a, b) => a - b));
  expect(ridges[0]).toBeLessThan(ridges.at(-1) as number);
});
