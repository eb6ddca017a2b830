import { expect, test } from 'vitest';
import { checkSize, describeGrowth, type SizedPlan } from './check-size.js';

const plan = (changes: Partial<SizedPlan>): SizedPlan => ({
  ...{ bytesBefore: 1000, bytesAfter: 1400, format: 'mobe', quantised: { before: 8, after: 0 }, settings: {} },
  ...changes,
});

test('a result as large as its source is allowed', () => {
  expect(describeGrowth(plan({ bytesAfter: 1000 }))).toBeUndefined();
  expect(() => checkSize(plan({ bytesAfter: 1000 }))).not.toThrow();
});

test.each<[what: string, plan: SizedPlan, remedies: string[], not: string[]]>([
  ['bf16 factors of quantised experts', plan({}), ['--dtype int8', '--keep-quantized', '--keep'], ['int4', 'float32']],
  ['rebuilt weights', plan({ format: 'hf' }), ['--keep-quantized'], ['--dtype', 'a smaller --keep']],
  ['int5 factors', plan({ settings: { dtype: 'int5' } }), ['--dtype int4', '--keep-quantized'], ['int8']],
  [
    'float32',
    plan({ format: 'hf', quantised: { before: 0, after: 0 }, settings: { dtype: 'float32' } }),
    ['Leave out --dtype float32'],
    ['--keep-quantized', 'decoded'],
  ],
])('of %s, a larger one is refused with what makes it smaller', (_, larger, remedies, not) => {
  expect(() => checkSize(larger)).toThrow(/140\.0 % of the source's 1000 B.*Or give --allow-larger\.$/);
  const told = describeGrowth(larger);
  for (const remedy of remedies) expect(told).toContain(remedy);
  for (const remedy of not) expect(told).not.toContain(remedy);
});
