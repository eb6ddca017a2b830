import { setTimeout as sleep } from 'node:timers/promises';
import { expect, test } from 'vitest';
import { inLanes } from './in-lanes.js';

test('every item once, begun in their order, at most so many at a time', async () => {
  const begun: number[] = [];
  let running = 0;
  let most = 0;
  await inLanes(3, [4, 1, 3, 0, 2, 5], async (item) => {
    begun.push(item);
    most = Math.max(most, ++running);
    await sleep(item);
    running--;
  });
  expect(begun).toEqual([4, 1, 3, 0, 2, 5]);
  expect(most).toBe(3);
});

test('the first failure, once nothing runs any more; nothing is begun after it', async () => {
  const begun: number[] = [];
  let running = 0;
  const all = inLanes(2, [10, 1, 2, 3], async (item) => {
    begun.push(item);
    running++;
    await sleep(item);
    running--;
    if (item < 10) throw new Error(`at ${item}`);
  });
  await expect(all).rejects.toThrow('at 1');
  expect(running).toBe(0);
  expect(begun).toEqual([10, 1]);
});

test('of nothing, nothing', () => inLanes(2, [], () => Promise.reject(new Error('it was called'))));
