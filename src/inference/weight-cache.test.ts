import { expect, test } from 'vitest';
import type { Engine } from '../engine/engine.js';
import { type Unit, unitBytes, WeightCache } from './weight-cache.js';

/** An engine that counts the bytes of its live tensors. */
function fakeEngine() {
  const live = new Set<Float32Array>();
  const engine = {
    tensor: (data: Float32Array, shape: readonly number[]) => {
      live.add(data);
      return { data, shape, dispose: () => void live.delete(data) };
    },
  } as unknown as Engine;
  return { engine, live, bytes: () => [...live].reduce((sum, { byteLength }) => sum + byteLength, 0) };
}

const log: string[] = [];
const unit = (key: string, needed: Unit['needed'] = 'routed', numbers = 25): Unit => ({
  key,
  shapes: { W: [numbers] },
  needed,
  async fill({ W }) {
    log.push(key);
    W?.fill(key.charCodeAt(0));
  },
});

/** The units that are read for a sequence of uses, one letter each. Capital letters are units with `needed: 'always'`. */
async function reads(cache: WeightCache, uses: string): Promise<string> {
  log.length = 0;
  for (const key of uses)
    await cache.with(unit(key, key < 'a' ? 'always' : 'routed'), async ({ W }) => {
      const { data } = W as unknown as { data: Float32Array };
      expect(new Set(data)).toEqual(new Set([key.charCodeAt(0)]));
    });
  return log.join('');
}

test('what fits is read once', async () => {
  const { engine } = fakeEngine();
  const cache = new WeightCache(engine, 300, 100);
  expect(await reads(cache, 'abcabcabc')).toBe('abc');
  expect(cache.counts).toEqual({ hits: 6, misses: 3 });
});

test('what was used longest ago goes first', async () => {
  const { engine } = fakeEngine();
  expect(await reads(new WeightCache(engine, 300, 0), 'abcadbad')).toBe('abcdb');
});

test('what is needed always stays, as far as its share goes, and never pushes out what is routed beyond that', async () => {
  const { engine } = fakeEngine();
  // A and B fit the share of kept units. C does not and is read each time.
  expect(await reads(new WeightCache(engine, 400, 200), 'ABCaABCaABCa')).toBe('ABCaCC');
});

test('the budget holds at all times, and memory is used again', async () => {
  const { engine, live, bytes } = fakeEngine();
  const cache = new WeightCache(engine, 250, 0);
  const seen = new Set<Float32Array>();
  for (const key of 'abcdefgabc') {
    await cache.with(unit(key), async () => {
      expect(bytes()).toBeLessThanOrEqual(250);
      for (const array of live) seen.add(array);
    });
  }
  expect(seen.size).toBeLessThanOrEqual(3);
});

test('what is in use is not taken away by what is read meanwhile', async () => {
  const { engine } = fakeEngine();
  const cache = new WeightCache(engine, 100, 0);
  await cache.with(unit('a'), async ({ W }) => {
    await cache.with(unit('b'), async () => {});
    await cache.with(unit('c'), async () => {});
    expect((W as unknown as { data: Float32Array }).data[0]).toBe('a'.charCodeAt(0));
  });
});

test('a unit that cannot be read leaves the budget as it was', async () => {
  const { engine, bytes } = fakeEngine();
  const cache = new WeightCache(engine, 200, 0);
  const broken: Unit = { ...unit('x'), fill: () => Promise.reject(new Error('unreadable')) };
  for (let i = 0; i < 5; i++) await expect(cache.with(broken, async () => {})).rejects.toThrow('unreadable');
  expect(await reads(cache, 'abab')).toBe('ab');
  expect(bytes()).toBe(200);
});

test('disposing lets go of everything', async () => {
  const { engine, live } = fakeEngine();
  const cache = new WeightCache(engine, 1000, 500);
  await reads(cache, 'AaBb');
  cache.clear();
  expect(live.size).toBe(0);
});

test("a unit's bytes are those of f32", () => expect(unitBytes(unit('a'))).toBe(100));
