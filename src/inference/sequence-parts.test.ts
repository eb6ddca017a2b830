import { expect, test } from 'vitest';
import { MASKED } from './attention.js';
import { KeyValueCache } from './key-value-cache.js';
import { placeParts } from './sequence-parts.js';

const part = (tokens: number) => ({
  sequence: new KeyValueCache([{ heads: 1, keySize: 2, valueSize: 2 }]),
  tokens: Array.from({ length: tokens }, () => 0),
});

test('a few tokens are one chunk, and each sees itself and those before it', () => {
  const [, second] = placeParts([part(5), part(3)]);
  const [chunk, ...others] = second?.chunks(4) ?? [];
  expect(others).toEqual([]);
  expect(chunk).toMatchObject({ position: 0, tokens: 3, row: 5 });
  const M = Math.fround(MASKED);
  expect([...(chunk?.mask(4) ?? [])]).toEqual([0, M, M, M, 0, 0, M, M, 0, 0, 0, M]);
  expect(chunk?.mask(4)).toBe(chunk?.mask(4));
});

test('many tokens are chunks that follow each other, each with few scores, and see what came before', () => {
  const after = part(1000);
  after.sequence.append(0, new Float32Array(40), new Float32Array(40)); // 20 tokens
  const chunks = [...(placeParts([part(7), after])[1]?.chunks(64) ?? [])];
  expect(chunks.length).toBeGreaterThan(10);
  let done = 0;
  for (const { position, tokens, row, mask } of chunks) {
    expect({ position, row }).toEqual({ position: 20 + done, row: 7 + done });
    expect(64 * tokens * 1024).toBeLessThanOrEqual(2 ** 22);
    const visible = mask(1024)
      .subarray((tokens - 1) * 1024, tokens * 1024)
      .filter((it) => it === 0).length;
    expect(visible).toBe(20 + done + tokens);
    done += tokens;
  }
  expect(done).toBe(1000);
});
