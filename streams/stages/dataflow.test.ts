import { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import _ from 'highland';
import { describe, expect, test } from 'vitest';
import type { Copy } from '../../src/conversion/conversion-plan.js';
import type { RangeReader } from '../../src/sources/files.js';
import { ByteBudget } from '../flow/byte-budget.js';
import { compose, merge } from '../flow/highland.js';
import { passThrough } from './pass-through.js';

async function collect<T>(items: AsyncIterable<T>): Promise<T[]> {
  const all: T[] = [];
  for await (const item of items) all.push(item);
  return all;
}

/** Counts what is pulled from it and notices being closed. */
function source(count: number, failAt = Number.POSITIVE_INFINITY) {
  const state = { pulled: 0, closed: false };
  async function* items() {
    try {
      for (let i = 0; i < count; i++) {
        state.pulled++;
        if (i === failAt) throw new RangeError('source failed');
        yield i;
      }
    } finally {
      state.closed = true;
    }
  }
  return { state, items: items() };
}

describe('a highland composition', () => {
  test('passes everything through in order', async () => {
    const doubled = compose(source(5).items, (stream) =>
      stream.map((x) => _(delay(5 - x).then(() => 2 * x))).parallel(2),
    );
    expect(await collect(doubled)).toEqual([0, 2, 4, 6, 8]);
  });

  test('pulls no further ahead than its stages hold', async () => {
    const { state, items } = source(100);
    const iterator = compose(items, (stream) => stream.map((x) => _(Promise.resolve(x))).parallel(1));
    await iterator.next();
    await delay(20);
    expect(state.pulled).toBeLessThan(8);
    await iterator.return(undefined);
    expect(state.closed).toBe(true);
  });

  test('a failing source surfaces and is closed', async () => {
    const { state, items } = source(10, 3);
    await expect(collect(compose(items, (stream) => stream.map((x) => x)))).rejects.toThrow('source failed');
    expect(state.closed).toBe(true);
  });

  test('a failing stage surfaces and closes the source', async () => {
    const { state, items } = source(10);
    const failing = compose(items, (stream) =>
      stream.map((x) => _(x === 2 ? Promise.reject(new Error('stage failed')) : Promise.resolve(x))).parallel(1),
    );
    await expect(collect(failing)).rejects.toThrow('stage failed');
    await delay(5);
    expect(state.closed).toBe(true);
  });

  test('a failing sink ends the pipeline and closes the source', async () => {
    const { state, items } = source(100);
    const sink = new Writable({
      objectMode: true,
      highWaterMark: 1,
      write: (x, __, done) => done(x === 4 ? new Error('sink failed') : null),
    });
    await expect(
      pipeline(
        compose(items, (stream) => stream.map((x) => x)),
        sink,
      ),
    ).rejects.toThrow('sink failed');
    await delay(5);
    expect(state.closed).toBe(true);
  });
});

describe('merged branches', () => {
  test('give everything of all', async () => {
    expect(
      (await collect(merge([source(50).items, source(30).items, source(0).items]))).sort((a, b) => a - b),
    ).toHaveLength(80);
  });

  test('a failing branch surfaces and closes the others', async () => {
    const [good, bad] = [source(1000), source(10, 5)];
    await expect(collect(merge([good.items, bad.items]))).rejects.toThrow('source failed');
    await delay(5);
    expect(good.state.closed).toBe(true);
  });

  test('a slow sink holds both back', async () => {
    const branches = [source(1000), source(1000)];
    const iterator = merge(branches.map(({ items }) => items));
    for (let i = 0; i < 4; i++) await iterator.next();
    await delay(20);
    expect(branches[0]?.state.pulled).toBeLessThan(16);
    await iterator.return(undefined);
  });
});

describe('a byte budget', () => {
  test('lets through what fits and holds the rest, in order', async () => {
    const budget = new ByteBudget(10);
    const granted: string[] = [];
    const ask = (name: string, bytes: number) => void budget.acquire(bytes).then(() => granted.push(name));
    ask('a', 6);
    ask('b', 6);
    ask('c', 1);
    await delay(1);
    expect(granted).toEqual(['a']); // c would fit, but must not overtake b
    budget.release(6);
    await delay(1);
    expect(granted).toEqual(['a', 'b', 'c']);
  });

  test('grants what is larger than itself alone', async () => {
    const budget = new ByteBudget(10);
    await budget.acquire(3);
    let granted = false;
    const big = budget.acquire(100).then(() => {
      granted = true;
    });
    await delay(1);
    expect(granted).toBe(false);
    budget.release(3);
    await big;
  });
});

test('passing through cuts large tensors and joins small ones, and loses no byte', async () => {
  const sizes = [5, 3, 20_000_000, 1, 0, 8_388_608, 7];
  let position = 64;
  const copies: Copy[] = sizes.map((size, i) => {
    const start = position;
    position += size + (i === 3 ? 10 : 0); // a gap: the next cannot share a read
    return { target: `t${i}`, offset: 0, source: { file: 'f', start, end: start + size } };
  });
  const reads: number[] = [];
  // The byte at position x is x mod 251.
  const reader = {
    async readRange({ start, end }: { start: number; end: number }) {
      reads.push(end - start);
      return Uint8Array.from({ length: end - start }, (_, i) => (start + i) % 251);
    },
  } as unknown as RangeReader;
  const seen = new Map<string, number>();
  for await (const { tensor, offset, data } of passThrough(copies, reader)) {
    const { start } = (copies.find(({ target }) => target === tensor) as Copy).source;
    expect(offset).toBe(seen.get(tensor) ?? 0);
    expect(data[0]).toBe((start + offset) % 251);
    expect(data.at(-1)).toBe((start + offset + data.length - 1) % 251);
    seen.set(tensor, offset + data.length);
  }
  expect(Object.fromEntries(seen)).toEqual({ t0: 5, t1: 3, t2: 20_000_000, t3: 1, t5: 8_388_608, t6: 7 });
  expect(Math.max(...reads)).toBeLessThanOrEqual(8 * 2 ** 20);
  expect(reads[0]).toBe(8);
});
