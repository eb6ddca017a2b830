import { createHash, randomFillSync } from 'node:crypto';
import { expect, test } from 'vitest';
import { sha256 } from './sha256.js';

test.each([0, 1, 63, 64, 65, 3_000_001])('%i bytes, shared or not, as OpenSSL hashes them', async (size) => {
  const bytes = randomFillSync(new Uint8Array(size));
  const shared = new Uint8Array(new SharedArrayBuffer(size + 7), 7); // a view that does not begin at the start of its memory
  shared.set(bytes);
  const expected = createHash('sha256').update(bytes).digest('hex');
  expect(await sha256(bytes)).toBe(expected);
  expect(await sha256(shared)).toBe(expected);
});

test('many at once, each its own answer', async () => {
  const blocks = Array.from({ length: 50 }, (_, i) => new Uint8Array(new SharedArrayBuffer(1000 * i + 1)).fill(i));
  const expected = blocks.map((bytes) => createHash('sha256').update(bytes).digest('hex'));
  expect(await Promise.all(blocks.map(sha256))).toEqual(expected);
});
