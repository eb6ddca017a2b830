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
const unit = (key: string, kind: Unit['kind'] = 'expert', numbers = 25): Unit => ({
  key,
  shapes: { W: [numbers] },
  kind,
  async fill({ W }, kept) {
    log.push(kept ? key : `(${key})`);
    W?.fill(key.charCodeAt(0));
  },
});

/** Limits of 100 bytes a unit: one is in use, and some of each kind are kept. */
const keeping = (engine: Engine, always: number, expert: number, mixed = 0): WeightCache =>
  new WeightCache(engine, 100 * (1 + always + expert + mixed), {
    always: 100 * always,
    expert: 100 * expert,
    mixed: 100 * mixed,
  });

/** The units that are made for a sequence of uses, one letter each, in brackets if not kept. Capital letters are always needed. */
async function makes(cache: WeightCache, uses: string): Promise<string> {
  log.length = 0;
  for (const key of uses)
    await cache.with(unit(key, key < 'a' ? 'always' : 'expert'), async ({ W }) => {
      const { data } = W as unknown as { data: Float32Array };
      expect(new Set(data)).toEqual(new Set([key.charCodeAt(0)]));
    });
  return log.join('');
}

test('what fits is made once', async () => {
  const cache = keeping(fakeEngine().engine, 0, 3);
  expect(await makes(cache, 'abcabcabc')).toBe('abc');
  expect(cache.counts).toEqual({ hits: 6, misses: 3 });
});

test('what came first stays, and the rest is made each time', async () => {
  expect(await makes(keeping(fakeEngine().engine, 0, 2), 'abcacbcd')).toBe('ab(c)(c)(c)(d)');
});

test('each kind has a share of its own', async () => {
  const cache = keeping(fakeEngine().engine, 2, 1, 1);
  expect(await makes(cache, 'ABCabABCab')).toBe('AB(C)a(b)(C)(b)');
  log.length = 0;
  for (const key of ['m', 'n', 'm']) await cache.with(unit(key, 'mixed'), async () => {});
  expect(log.join('')).toBe('m(n)');
});

test('the budget holds at all times, and memory is used again', async () => {
  const { engine, live, bytes } = fakeEngine();
  const cache = keeping(engine, 0, 1);
  const seen = new Set<Float32Array>();
  for (const key of 'abcdefgabc') {
    await cache.with(unit(key), async () => {
      expect(bytes()).toBeLessThanOrEqual(200);
      for (const array of live) seen.add(array);
    });
  }
  expect(seen.size).toBe(2);
});

test('what is in use is not taken away by what is made meanwhile', async () => {
  const cache = keeping(fakeEngine().engine, 0, 0);
  await cache.with(unit('a'), async ({ W }) => {
    await cache.with(unit('b'), async () => {});
    await cache.with(unit('c'), async () => {});
    expect((W as unknown as { data: Float32Array }).data[0]).toBe('a'.charCodeAt(0));
  });
});

test('a unit that cannot be read leaves the budget as it was', async () => {
  const { engine, bytes } = fakeEngine();
  const cache = keeping(engine, 0, 2);
  const broken: Unit = { ...unit('x'), fill: () => Promise.reject(new Error('unreadable')) };
  for (let i = 0; i < 5; i++) await expect(cache.with(broken, async () => {})).rejects.toThrow('unreadable');
  expect(await makes(cache, 'abab')).toBe('ab');
  expect(bytes()).toBe(200);
});

test('clearing lets go of everything', async () => {
  const { engine, live } = fakeEngine();
  const cache = keeping(engine, 2, 2);
  await makes(cache, 'AaBb');
  cache.clear();
  expect(live.size).toBe(0);
  expect(await makes(cache, 'AabB')).toBe('AabB');
});

test("a unit's bytes are those of f32", () => expect(unitBytes(unit('a'))).toBe(100));
