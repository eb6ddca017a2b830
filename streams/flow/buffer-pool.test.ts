import { expect, test } from 'vitest';
import type { Copy } from '../../src/conversion/conversion-plan.js';
import type { RangeReader } from '../../src/sources/files.js';
import { passThrough } from '../stages/pass-through.js';
import { BufferPool, type PooledBuffer } from './buffer-pool.js';

test('lends as many as it has, then makes whoever asks wait for the next that is given back', async () => {
  const pool = new BufferPool(2, 8);
  const first = await pool.take();
  const second = await pool.take();
  expect(second.bytes).not.toBe(first.bytes);
  let third: PooledBuffer | undefined;
  const waiting = pool.take().then((buffer) => {
    third = buffer;
  });
  await Promise.resolve();
  expect(third).toBeUndefined();
  first.release();
  await waiting;
  expect(third?.bytes).toBe(first.bytes);
});

test('a buffer given back twice is lent once', async () => {
  const pool = new BufferPool(2, 8);
  const first = await pool.take();
  first.release();
  first.release();
  const [again, other] = [await pool.take(), await pool.take()];
  expect(again.bytes).not.toBe(other.bytes);
});

test('passing through a pool: every byte arrives before its memory is used again', async () => {
  const sizes = [20_000_000, 5, 3, 8_388_608, 7, 9_000_000, 0, 1];
  let position = 0;
  const copies: Copy[] = sizes.map((size, i) => {
    const start = position;
    position += size;
    return { target: `t${i}`, offset: 0, source: { file: 'f', start, end: start + size } };
  });
  const reader = {
    async read(_file: string, start: number, target: Uint8Array) {
      for (let i = 0; i < target.length; i++) target[i] = (start + i) % 251;
    },
  } as unknown as RangeReader;
  let held = 0;
  let most = 0;
  const pool = new BufferPool(3, 8 * 2 ** 20, (bytes) => {
    held += bytes;
    most = Math.max(most, held);
  });
  const seen = new Map<string, number>();
  for await (const { tensor, offset, data, release } of passThrough(copies, reader, pool)) {
    const { start } = (copies.find(({ target }) => target === tensor) as Copy).source;
    await Promise.resolve();
    expect(data[0]).toBe((start + offset) % 251);
    expect(data.at(-1)).toBe((start + offset + data.length - 1) % 251);
    seen.set(tensor, offset + data.length);
    release?.();
  }
  expect([...seen.values()].reduce((sum, bytes) => sum + bytes, 0)).toBe(position);
  expect(held).toBe(0);
  expect(most).toBeLessThanOrEqual(3 * 8 * 2 ** 20);
});
