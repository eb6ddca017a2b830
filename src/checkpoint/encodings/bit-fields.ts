/**
 * Unsigned integers of 1 to 8 bits, packed without gaps into little-endian 32-bit words, lowest bits first: field i begins at
 * bit i · bits. (Fields of 2, 4 and 8 bits never cross a word.)
 */

/** The number of words that this many fields fill. */
export const wordsOf = (fields: number, bits: number): number => Math.ceil((fields * bits) / 32);

/**
 * The value of one field.
 * @param word returns a word of the stream by its index
 */
export function fieldAt(word: (index: number) => number, field: number, bits: number): number {
  const at = field * bits;
  const index = at >>> 5;
  const offset = at & 31;
  const low = word(index) >>> offset;
  const value = offset + bits > 32 ? low | (word(index + 1) << (32 - offset)) : low;
  return value & ((1 << bits) - 1);
}

export const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The bytes as words. Bytes that are not aligned are copied. */
export function wordArray(bytes: Uint8Array): Int32Array {
  const { buffer, byteOffset, byteLength } = bytes.byteOffset % 4 === 0 ? bytes : new Uint8Array(bytes);
  return new Int32Array(buffer, byteOffset, byteLength / 4);
}
