import { Writable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { setTimeout as delay } from 'node:timers/promises';
import _ from 'highland';
import { describe, expect, test } from 'vitest';
import type { Copy } from '../../src/conversion/conversion-plan.js';
import type { RangeReader } from '../../src/sources/files.js';
import { ByteBudget } from '../flow/byte-budget.js';
import { compose, merge } from '../flow/highland.js';
import { runOwnStage } from '../flow/own-stage.js';
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

describe('stages written as generators', () => {
  async function* double(input: AsyncIterable<number>) {
    for await (const x of input) yield 2 * x;
  }
  async function* pairs(input: AsyncIterable<number>) {
    let held: number | undefined;
    for await (const x of input) {
      if (held === undefined) held = x;
      else {
        yield [held, x];
        held = undefined;
      }
    }
  }

  test('follow one another', async () => {
    const composed = compose(source(6).items, (stream, { stage }) =>
      stream.through(stage(double)).through(stage(pairs)),
    );
    expect(await collect(composed)).toEqual([
      [0, 2],
      [4, 6],
      [8, 10],
    ]);
  });

  test('pull no further ahead than one record each', async () => {
    const { state, items } = source(100);
    const iterator = compose(items, (stream, { stage }) => stream.through(stage(double)).through(stage(double)));
    await iterator.next();
    await delay(20);
    expect(state.pulled).toBeLessThan(12);
    await iterator.return(undefined);
    expect(state.closed).toBe(true);
  });

  test('a failing one surfaces and closes the source', async () => {
    const { state, items } = source(10);
    async function* failing(input: AsyncIterable<number>) {
      for await (const x of input) {
        if (x === 4) throw new Error('stage failed');
        yield x;
      }
    }
    await expect(
      collect(compose(items, (stream, { stage }) => stream.through(stage(failing)).through(stage(double)))),
    ).rejects.toThrow('stage failed');
    await delay(5);
    expect(state.closed).toBe(true);
  });

  test('a failing source is seen behind them', async () => {
    const failing = compose(source(10, 3).items, (stream, { stage }) =>
      stream.through(stage(double)).through(stage(pairs)),
    );
    await expect(collect(failing)).rejects.toThrow('source failed');
  });
});

describe('lanes', () => {
  /** Lets a test end each lane when it wants. */
  function gates(count: number) {
    const opened: Array<() => void> = [];
    const closed = Array.from({ length: count }, (_, i) => new Promise<void>((resolve) => (opened[i] = resolve)));
    return { open: (i: number) => opened[i]?.(), closed };
  }

  test('run side by side up to the limit, and none waits for another', async () => {
    const { open, closed } = gates(3);
    const started: number[] = [];
    const composed = compose(source(3).items, (stream, { lanes }) =>
      stream.through(
        lanes(2, async function* (i) {
          started.push(i);
          await closed[i];
          yield `${i}a`;
          yield `${i}b`;
        }),
      ),
    );
    const all = collect(composed);
    await delay(5);
    expect(started).toEqual([0, 1]);
    open(1);
    await delay(5);
    expect(started).toEqual([0, 1, 2]);
    open(2);
    await delay(5);
    open(0);
    expect(await all).toEqual(['1a', '1b', '2a', '2b', '0a', '0b']);
  });

  test('a failing one surfaces and closes the source', async () => {
    const { state, items } = source(10);
    const composed = compose(items, (stream, { lanes }) =>
      stream.through(
        lanes(3, async function* (i) {
          if (i === 2) throw new Error('lane failed');
          yield i;
        }),
      ),
    );
    await expect(collect(composed)).rejects.toThrow('lane failed');
    await delay(5);
    expect(state.closed).toBe(true);
  });
});

describe('a stage of somebody’s own', () => {
  /** As `readExperts` does: a group's bytes are taken before it comes. */
  async function* budgeted(count: number, budget: ByteBudget) {
    for (let i = 0; i < count; i++) {
      const { release } = await budget.acquire(6);
      yield { i, release };
    }
  }

  test('that drops groups does not hang the pipeline', async () => {
    const odd = compose(budgeted(9, new ByteBudget(10)), (stream, { stage }) =>
      stream.through(
        stage((groups) =>
          runOwnStage(groups, async function* (all) {
            for await (const group of all) if (group.i % 2) yield group;
          }),
        ),
      ),
    );
    const seen: number[] = [];
    for await (const { i, release } of odd) {
      seen.push(i);
      release();
    }
    expect(seen).toEqual([1, 3, 5, 7]);
  });

  test('what it passes on, changed perhaps, is held until it is released', async () => {
    const budget = new ByteBudget(10);
    const passed = runOwnStage(budgeted(3, budget), async function* (all) {
      for await (const group of all) yield { ...group, i: 10 * group.i };
    });
    const { value: first } = await passed.next();
    let second: number | undefined;
    const next = passed.next().then(({ value }) => {
      second = value?.i;
    });
    await delay(5);
    expect(second).toBeUndefined();
    first?.release();
    await next;
    expect(second).toBe(10);
    await passed.return(undefined);
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
    const ask = (name: string, bytes: number) =>
      budget.acquire(bytes).then((lease) => {
        granted.push(name);
        return lease;
      });
    const a = ask('a', 6);
    void ask('b', 6);
    void ask('c', 1);
    await delay(1);
    expect(granted).toEqual(['a']); // c would fit, but must not overtake b
    (await a).release();
    await delay(1);
    expect(granted).toEqual(['a', 'b', 'c']);
  });

  test('grants what is larger than itself alone', async () => {
    const budget = new ByteBudget(10);
    const small = await budget.acquire(3);
    let granted = false;
    const big = budget.acquire(100).then(() => {
      granted = true;
    });
    await delay(1);
    expect(granted).toBe(false);
    small.release();
    await big;
  });

  test('bytes that are given back twice count once', async () => {
    const budget = new ByteBudget(10);
    const first = await budget.acquire(10);
    first.release();
    first.release();
    await budget.acquire(10);
    let granted = false;
    void budget.acquire(10).then(() => {
      granted = true;
    });
    await delay(1);
    expect(granted).toBe(false);
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
