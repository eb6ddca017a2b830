/**
 * The inner loops that widen 16-bit floats to f32. V8 does not unroll loops. Eight elements in each turn, and two bf16 in each
 * load, take about half the time of one by one (bench/README.md).
 */

/**
 * Widens bf16 bit patterns.
 * @param pairs two bf16 bit patterns each, the first in the lower half
 * @param target f32 bit patterns, two for each pair
 */
export function widenBfloat16(pairs: Int32Array, target: Int32Array): void {
  const count = pairs.length;
  let from = 0;
  let to = 0;
  for (; from + 4 <= count; from += 4, to += 8) {
    const pair0 = pairs[from] as number;
    const pair1 = pairs[from + 1] as number;
    const pair2 = pairs[from + 2] as number;
    const pair3 = pairs[from + 3] as number;
    target[to] = pair0 << 16;
    target[to + 1] = pair0 & UPPER_HALF;
    target[to + 2] = pair1 << 16;
    target[to + 3] = pair1 & UPPER_HALF;
    target[to + 4] = pair2 << 16;
    target[to + 5] = pair2 & UPPER_HALF;
    target[to + 6] = pair3 << 16;
    target[to + 7] = pair3 & UPPER_HALF;
  }
  for (; from < count; from++, to += 2) {
    const pair = pairs[from] as number;
    target[to] = pair << 16;
    target[to + 1] = pair & UPPER_HALF;
  }
}

const UPPER_HALF = -65536;

/**
 * Widens f16 bit patterns.
 * @param table f32 bit pattern of each f16 bit pattern
 * @param source f16 bit patterns
 */
export function widenHalf(table: Uint32Array, source: Uint16Array, target: Uint32Array): void {
  const count = source.length;
  let i = 0;
  for (; i + 8 <= count; i += 8) {
    target[i] = table[source[i] as number] as number;
    target[i + 1] = table[source[i + 1] as number] as number;
    target[i + 2] = table[source[i + 2] as number] as number;
    target[i + 3] = table[source[i + 3] as number] as number;
    target[i + 4] = table[source[i + 4] as number] as number;
    target[i + 5] = table[source[i + 5] as number] as number;
    target[i + 6] = table[source[i + 6] as number] as number;
    target[i + 7] = table[source[i + 7] as number] as number;
  }
  for (; i < count; i++) target[i] = table[source[i] as number] as number;
}
