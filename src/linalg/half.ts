/**
 * Rounds in place to the 11 significant bits of fp16, ties to even, whatever the exponent: where fp16 itself would
 * overflow or run out of bits, the reference fits something else than the weights.
 */
export function roundToHalf(values: Float32Array): Float32Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < bits.length; i++) {
    const x = bits[i] as number;
    // Half of the last kept bit, less one where that bit is 0; a carry moves into the exponent as it should.
    bits[i] = (x + 0xfff + ((x >>> 13) & 1)) & ~0x1fff;
  }
  return values;
}
