import { expect, test } from 'vitest';
import { z } from 'zod';
import { listOf } from './list-of.js';

const odd = z.object({ n: z.number().refine((n) => n % 2 === 1) });

test('a list is given back as it came, whatever else its elements hold', () => {
  const list = [{ more: 1, n: 1 }, { n: 3 }];
  const read = z.object({ list: listOf(odd) }).parse({ list });
  expect(JSON.stringify(read.list)).toBe(JSON.stringify(list));
  expect(listOf(odd).parse([])).toEqual([]);
});

test.each<[string, unknown]>([
  ['no list', { n: 1 }],
  ['nothing', undefined],
  ['a list with one that does not belong', [{ n: 1 }, { n: 2 }]],
])('%s is refused', (_, value) => expect(listOf(odd).safeParse(value).success).toBe(false));

test('looks no further than the first that does not belong, and says one thing', () => {
  let looked = 0;
  const counted = z.custom<number>(() => ++looked < 3);
  const { error } = listOf(counted).safeParse(Array.from({ length: 1000 }, () => 0));
  expect(looked).toBe(3);
  expect(error?.issues).toHaveLength(1);
});
