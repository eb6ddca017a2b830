import { setTimeout as delay } from 'node:timers/promises';
import { describe, expect, test } from 'vitest';
import { bottleneck, createStageClocks, type StageTimes } from './stage-clock.js';

const size = (): number => 10;

async function* every(milliseconds: number, count: number): AsyncGenerator<number> {
  for (let i = 0; i < count; i++) {
    await delay(milliseconds);
    yield i;
  }
}

const named = (times: readonly StageTimes[], stage: string): StageTimes =>
  times.find((it) => it.stage === stage) as StageTimes;

describe('a source', () => {
  test('works while a record is asked for and is blocked while it is dealt with', async () => {
    const clocks = createStageClocks();
    for await (const _ of clocks.source('read', every(10, 5), size)) await delay(30);
    const { working, blocked, bytes } = named(clocks.times(), 'read');
    expect(working).toBeGreaterThan(40);
    expect(working).toBeLessThan(blocked);
    expect(blocked).toBeGreaterThan(140);
    expect(bytes).toBe(50);
  });

  test('is ended with whoever takes from it', async () => {
    let ended = false;
    const endless = async function* (): AsyncGenerator<number> {
      try {
        for (;;) yield 1;
      } finally {
        ended = true;
      }
    };
    for await (const _ of createStageClocks().source('read', endless(), size)) break;
    expect(ended).toBe(true);
  });

  test('hands on what its input throws', async () => {
    // biome-ignore lint/correctness/useYield: it fails before its first record
    const failing = async function* (): AsyncGenerator<number> {
      throw new Error('unreadable');
    };
    const records = createStageClocks().source('read', failing(), size)[Symbol.asyncIterator]();
    await expect(records.next()).rejects.toThrow('unreadable');
  });
});

test('a transform is starved by a slow input, works on its own, and is blocked by a slow output', async () => {
  const clocks = createStageClocks();
  const doubled = clocks.transform('double', every(10, 4), size, async function* (input) {
    for await (const value of input) {
      await delay(20);
      yield 2 * value;
    }
  });
  const seen: number[] = [];
  for await (const value of doubled) {
    seen.push(value);
    await delay(30);
  }
  const { working, starved, blocked, bytes } = named(clocks.times(), 'double');
  expect(seen).toEqual([0, 2, 4, 6]);
  expect(starved).toBeGreaterThan(35);
  expect(working).toBeGreaterThan(starved);
  expect(blocked).toBeGreaterThan(working);
  expect(bytes).toBe(40);
});

test('pieces of work side by side count once, and not while there is none', async () => {
  const clocks = createStageClocks();
  await Promise.all([1, 2, 3].map(() => clocks.work('write', 7, () => delay(50))));
  await delay(50);
  const { working, starved, bytes } = named(clocks.times(), 'write');
  expect(working).toBeGreaterThan(45);
  expect(working).toBeLessThan(140);
  expect(starved).toBeGreaterThan(45);
  expect(bytes).toBe(21);
});

test('the times of every stage add up to the time since the first began', async () => {
  const clocks = createStageClocks();
  const started = performance.now();
  for await (const value of clocks.source('read', every(5, 5), size)) await clocks.work('write', value, () => delay(5));
  const wall = performance.now() - started;
  for (const { working, starved, blocked } of clocks.times()) {
    expect(working + starved + blocked).toBeGreaterThan(0.95 * wall);
    expect(working + starved + blocked).toBeLessThan(1.05 * wall + 5);
  }
});

test.each(['read', 'decode', 'write'])('when %s is slowed, it is the bottleneck', async (stage) => {
  const clocks = createStageClocks({ stage, factor: 8 });
  const read = clocks.source('read', every(4, 12), size);
  const decoded = clocks.transform('decode', read, size, async function* (input) {
    for await (const value of input) {
      await delay(4);
      yield value;
    }
  });
  for await (const value of decoded) await clocks.work('write', value, () => delay(4));
  expect(bottleneck(clocks.times())?.stage).toBe(stage);
});

test('the most that was held at once', () => {
  const clocks = createStageClocks();
  for (const bytes of [5, 10, -5, 3, -13]) clocks.held(bytes);
  expect(clocks.peakHeldBytes).toBe(15);
});
