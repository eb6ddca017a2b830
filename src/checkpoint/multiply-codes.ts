/**
 * The inner loops of decoding: a table look-up, a product and a store for each element. JavaScript multiplies in f64, where the
 * product of two f32 numbers is exact. So the store rounds once, like an f32 product. V8 does not unroll loops: eight elements
 * in each turn take about half the time of one.
 */

/** Decodes `count` 8-bit codes from `data[from]` on, multiplies them by `scale`, and writes them from `target[to]` on. */
export function multiplyCodes(
  values: Float32Array,
  scale: number,
  data: Uint8Array,
  from: number,
  target: Float32Array,
  to: number,
  count: number,
): void {
  const end = to + count;
  let d = from;
  let t = to;
  for (; t + 8 <= end; t += 8, d += 8) {
    target[t] = (values[data[d] as number] as number) * scale;
    target[t + 1] = (values[data[d + 1] as number] as number) * scale;
    target[t + 2] = (values[data[d + 2] as number] as number) * scale;
    target[t + 3] = (values[data[d + 3] as number] as number) * scale;
    target[t + 4] = (values[data[d + 4] as number] as number) * scale;
    target[t + 5] = (values[data[d + 5] as number] as number) * scale;
    target[t + 6] = (values[data[d + 6] as number] as number) * scale;
    target[t + 7] = (values[data[d + 7] as number] as number) * scale;
  }
  for (; t < end; t++, d++) target[t] = (values[data[d] as number] as number) * scale;
}

/** The values of the lower and of the upper four bits of each byte. */
export interface NibbleTables {
  readonly lower: Float32Array;
  readonly upper: Float32Array;
}

/** @param value returns the value of each of the 16 fields */
export const nibbleTables = (value: (field: number) => number): NibbleTables => ({
  lower: Float32Array.from({ length: 256 }, (_, byte) => value(byte & 15)),
  upper: Float32Array.from({ length: 256 }, (_, byte) => value(byte >>> 4)),
});

/**
 * Decodes columns `start` to `end` (exclusive) of a row of 4-bit fields and multiplies them by `scale`. The row's bytes begin at
 * `data[from]`, its numbers at `target[to]`. Words are little-endian, so column c is in byte ⌊c / 2⌋, in the lower half if c is
 * even.
 */
export function multiplyNibbles(
  lower: Float32Array,
  upper: Float32Array,
  scale: number,
  data: Uint8Array,
  from: number,
  start: number,
  end: number,
  target: Float32Array,
  to: number,
): void {
  // A group of an odd size can begin or end inside a byte.
  let d = from + ((start + 1) >>> 1);
  if (start % 2 === 1) target[to + start] = (upper[data[d - 1] as number] as number) * scale;
  let t = to + start + (start % 2);
  for (const last = to + end - 8; t <= last; t += 8, d += 4) {
    const pair0 = data[d] as number;
    const pair1 = data[d + 1] as number;
    const pair2 = data[d + 2] as number;
    const pair3 = data[d + 3] as number;
    target[t] = (lower[pair0] as number) * scale;
    target[t + 1] = (upper[pair0] as number) * scale;
    target[t + 2] = (lower[pair1] as number) * scale;
    target[t + 3] = (upper[pair1] as number) * scale;
    target[t + 4] = (lower[pair2] as number) * scale;
    target[t + 5] = (upper[pair2] as number) * scale;
    target[t + 6] = (lower[pair3] as number) * scale;
    target[t + 7] = (upper[pair3] as number) * scale;
  }
  for (; t + 2 <= to + end; t += 2, d++) {
    target[t] = (lower[data[d] as number] as number) * scale;
    target[t + 1] = (upper[data[d] as number] as number) * scale;
  }
  if (t < to + end) target[t] = (lower[data[d] as number] as number) * scale;
}
