import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createChecksum } from './checksum.js';

const checksum = (...parts: Uint8Array[]): string => {
  const state = createChecksum();
  for (const part of parts) state.update(part);
  return Buffer.from(state.digest()).toString('hex');
};

// Byte i is (7i + n) mod 256. Expected: section 2.8 of RFC 8439 written out in plain Python integers, which gives the
// RFC's own test vector (section 2.5.2).
test.each([
  [0, '4eb972c9a8fb3a1b382bb4d36f5ffad1'],
  [1, '93162fc1de6df59ea553ceab5251b96f'],
  [8, 'a6d6a5437b0367aa236bd08407bd0e03'],
  [16, 'bd46400f0025c631b2bdf7c0ff9b5838'],
  [100, 'a2e03e79cae3c017f1a5a5ea81887a14'],
  [1000, '4d5b0332aad09412f52fca3261d89af5'],
])('of %d bytes it is that of RFC 8439', (n, expected) => {
  expect(checksum(Uint8Array.from({ length: n }, (_, i) => (7 * i + n) % 256))).toBe(expected);
});

test('it does not depend on how the bytes are cut, but on every bit', () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1, maxLength: 300 }), fc.nat(), fc.nat(7), (bytes, at, bit) => {
      const cut = at % bytes.length;
      expect(checksum(bytes.subarray(0, cut), bytes.subarray(cut))).toBe(checksum(bytes));
      const flipped = Uint8Array.from(bytes);
      flipped[cut] = (flipped[cut] as number) ^ (1 << bit);
      expect(checksum(flipped)).not.toBe(checksum(bytes));
    }),
  );
});
