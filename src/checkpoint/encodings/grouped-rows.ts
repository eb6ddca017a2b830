/**
 * GPTQ and AWQ: the integers of a matrix (in, out), whose rows share scales and zero points in groups. Other formats store linear
 * layers as (out, in), so `view.ts` transposes this matrix.
 */
import { z } from 'zod';
import { fieldAt, viewOf, wordArray, wordsOf } from './bit-fields.js';
import { decodeScales, scaleBytes, scaleDtype } from './block-scales.js';
import { type Decoder, groupFault, type Range, type Span, size, spanOfRows } from './decoder.js';

const groups = { scaleDtype, groups: size, groupSize: size };

export const gptqSchema = z.strictObject({
  kind: z.literal('gptq'),
  bits: z.union([z.literal(2), z.literal(3), z.literal(4), z.literal(8)]),
  ...groups,
  /** Zero points are stored minus 1, as in all checkpoints except those of `checkpoint_format` "gptq_v2". */
  zerosLessOne: z.boolean(),
  /** `g_idx` has the group of each row. Otherwise the rows of a group follow each other. */
  reordered: z.boolean(),
});

/**
 * GPTQ: the data is words (⌈in · bits / 32⌉, out) i32. A word has fields of one column, lowest bits first. The scales (groups, out)
 * follow; then zero points (groups, ⌈out · bits / 32⌉) i32, whose words have fields of one row; then, if `reordered`, the group of
 * each row, (in) i32. W = (field − zero) · scale.
 */
export type GptqEncoding = Readonly<z.infer<typeof gptqSchema>>;

export const awqSchema = z.strictObject({ kind: z.literal('awq'), ...groups });

/**
 * AWQ, 4 bits, version "gemm": the data is words (in, out / 8) i32. A word has eight fields of one row, for the columns
 * 0 2 4 6 1 3 5 7 of eight. Scales (groups, out) follow, then zero points (groups, out / 8) i32 in the same order of columns as
 * the data. W = (field − zero) · scale.
 */
export type AwqEncoding = Readonly<z.infer<typeof awqSchema>>;

const WORD_BYTES = 4;
const INDEX_BYTES = 4;

/** The word that gptqmodel adds to a word of zero points: 1 in each field. */
const ONES = { 2: 0x55555555, 4: 0x11111111, 8: 0x01010101 } as const;

export const gptqDecoder: Decoder<GptqEncoding> = {
  describe: ({ bits, groupSize }) => `GPTQ INT${bits} in groups of ${groupSize}`,
  storedBytes: ({ bits, scaleDtype, groups, reordered }, rows, cols) => ({
    data: wordsOf(rows, bits) * cols * WORD_BYTES,
    scales: groupBytes(scaleDtype, groups, cols, bits) + (reordered ? rows * INDEX_BYTES : 0),
  }),
  rowSpan: ({ bits }, cols, rows) => spanOfRows(cols * WORD_BYTES, wordRows(bits, rows)),
  decode(encoding, cols, { rows, columns }, data, scales, target) {
    const { bits, scaleDtype, groups, groupSize, zerosLessOne, reordered } = encoding;
    const ofGroups = groupBytes(scaleDtype, groups, cols, bits);
    const indices = scales.length - ofGroups;
    if (reordered ? indices < (rows.first + rows.count) * INDEX_BYTES || indices % INDEX_BYTES !== 0 : indices !== 0)
      throw new RangeError(`${scales.length} bytes of scales do not fit ${groups} groups of ${cols} columns`);
    const words = wordArray(data);
    const others = viewOf(scales);
    const zeroStart = groups * cols * scaleBytes(scaleDtype);
    const zeroWords = wordsOf(cols, bits);
    const zeroAt = (group: number, column: number): number => {
      const start = zeroStart + group * zeroWords * WORD_BYTES;
      const stored = (index: number): number => others.getInt32(start + index * WORD_BYTES, true);
      if (!zerosLessOne) return fieldAt(stored, column, bits);
      // A carry into the next field undoes the borrow that happened when 1 was subtracted from the word.
      if (bits !== 3) return fieldAt((index) => stored(index) + ONES[bits], column, bits);
      return (fieldAt(stored, column, bits) + 1) & 7;
    };
    const table = groupTable(encoding, scales, cols, columns, zeroAt);
    const firstWord = wordRows(bits, rows).first;
    const mask = (1 << bits) - 1;
    for (let row = 0; row < rows.count; row++) {
      const at = rows.first + row;
      const group = reordered ? others.getInt32(ofGroups + at * INDEX_BYTES, true) : Math.floor(at / groupSize);
      const { factors, zeros } = table(group);
      const offset = (at * bits) & 31;
      const from = (((at * bits) >>> 5) - firstWord) * cols + columns.first;
      const to = row * columns.count;
      // A field of 3 bits can begin in one row of words and end in the next.
      const next = offset + bits > 32 ? cols : 0;
      for (let i = 0; i < columns.count; i++) {
        const low = (words[from + i] as number) >>> offset;
        const field = next ? low | ((words[from + i + next] as number) << (32 - offset)) : low;
        target[to + i] = ((field & mask) - (zeros[i] as number)) * (factors[i] as number);
      }
    }
  },
  fault: ({ groups, reordered }, rows, _, scales) => (reordered ? groupFault(rows, groups, scales) : undefined),
};

/** The rows of words that hold some rows of the matrix. */
function wordRows(bits: number, { first, count }: Range): Range {
  const word = Math.floor((first * bits) / 32);
  return { first: word, count: count === 0 ? 0 : wordsOf(first + count, bits) - word };
}

const AWQ_BITS = 4;
/** The first bit of the field of each of eight columns. */
const AWQ_SHIFT = Int32Array.of(0, 16, 4, 20, 8, 24, 12, 28);

export const awqDecoder: Decoder<AwqEncoding> = {
  describe: ({ groupSize }) => `AWQ INT4 in groups of ${groupSize}`,
  storedBytes: ({ scaleDtype, groups }, rows, cols) => ({
    data: rows * wordsOf(cols, AWQ_BITS) * WORD_BYTES,
    scales: groupBytes(scaleDtype, groups, cols, AWQ_BITS),
  }),
  rowSpan: (_, cols, rows): Span => spanOfRows(wordsOf(cols, AWQ_BITS) * WORD_BYTES, rows),
  decode(encoding, cols, { rows, columns }, data, scales, target) {
    const { scaleDtype, groups, groupSize } = encoding;
    if (scales.length !== groupBytes(scaleDtype, groups, cols, AWQ_BITS))
      throw new RangeError(`${scales.length} bytes of scales do not fit ${groups} groups of ${cols} columns`);
    const words = wordArray(data);
    const others = viewOf(scales);
    const stride = wordsOf(cols, AWQ_BITS);
    const zeroStart = groups * cols * scaleBytes(scaleDtype);
    const table = groupTable(encoding, scales, cols, columns, (group, column) => {
      const word = zeroStart + (group * stride + (column >>> 3)) * WORD_BYTES;
      return (others.getInt32(word, true) >>> (AWQ_SHIFT[column & 7] as number)) & 15;
    });
    for (let row = 0; row < rows.count; row++) {
      const { factors, zeros } = table(Math.floor((rows.first + row) / groupSize));
      const [from, to] = [row * stride, row * columns.count];
      for (let i = 0; i < columns.count; i++) {
        const column = columns.first + i;
        const field = ((words[from + (column >>> 3)] as number) >>> (AWQ_SHIFT[column & 7] as number)) & 15;
        target[to + i] = (field - (zeros[i] as number)) * (factors[i] as number);
      }
    }
  },
};

const groupBytes = (dtype: GptqEncoding['scaleDtype'], groups: number, cols: number, bits: number): number =>
  groups * (cols * scaleBytes(dtype) + wordsOf(cols, bits) * WORD_BYTES);

interface Group {
  readonly factors: Float32Array;
  readonly zeros: Int32Array;
}

/** Returns the scales and zero points of some columns by group. Each group is decoded once. */
function groupTable(
  { scaleDtype: dtype, groups }: Pick<GptqEncoding, 'scaleDtype' | 'groups'>,
  scales: Uint8Array,
  cols: number,
  { first, count }: Range,
  zeroAt: (group: number, column: number) => number,
): (group: number) => Group {
  const known = new Map<number, Group>();
  return (number) => {
    let group = known.get(number);
    if (!group) {
      if (!(number >= 0 && number < groups))
        throw new RangeError(`${scales.length} bytes of scales have no group ${number}`);
      const start = (number * cols + first) * scaleBytes(dtype);
      const factors = decodeScales(dtype, scales.subarray(start, start + count * scaleBytes(dtype)));
      group = { factors, zeros: Int32Array.from({ length: count }, (_, i) => zeroAt(number, first + i)) };
      known.set(number, group);
    }
    return group;
  };
}
