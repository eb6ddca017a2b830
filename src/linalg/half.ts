/**
 * Rounds values in place to the 11 significant bits of fp16, ties to even. The exponent is not limited to that of fp16: where
 * fp16 overflows or loses bits, the reference does not fit the actual weights, and this must not copy that.
 */
export function roundToHalf(values: Float32Array): Float32Array {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  for (let i = 0; i < bits.length; i++) {
    const x = bits[i] as number;
    // Adds half of the last kept bit, minus one if that bit is 0 (ties to even). A carry correctly goes into the exponent.
    bits[i] = (x + 0xfff + ((x >>> 13) & 1)) & ~0x1fff;
  }
  return values;
}
