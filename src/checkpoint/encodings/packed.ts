/** "pack-quantized" of compressed-tensors: integers of 1 to 8 bits in 32-bit words along the rows. */
import { z } from 'zod';
import { nibbleTables } from '../multiply-codes.js';
import { fieldAt, viewOf, wordArray, wordsOf } from './bit-fields.js';
import {
  type BlockScales,
  blockScaleBytes,
  decodeScales,
  multiplyCodeBlocks,
  multiplyNibbleBlocks,
  scaleBytes,
  scaleDtype,
} from './block-scales.js';
import { type Decoder, groupFault, size, spanOfRows, type Window } from './decoder.js';

export const packedSchema = z.strictObject({
  kind: z.literal('packed'),
  bits: z.int().min(1).max(8),
  scaleDtype,
  groupSize: size,
  /** The rows of words of zero points. 0 if the zero of every group is the middle of its range. */
  zeroRows: z.int().nonnegative(),
  /** `weight_g_idx` has the group of each column. Otherwise the columns of a group follow each other. */
  reordered: z.boolean(),
});

/**
 * The data is words (rows, ⌈cols · bits / 32⌉) i32, whose fields hold value + 2^(bits − 1), lowest bits first. After it come:
 *
 * - scales (rows, ⌈cols / groupSize⌉)
 * - if asymmetric, a zero point for each scale, with the same offset, packed along the columns: (⌈rows · bits / 32⌉, groups) i32
 * - if reordered, the group of each column, (cols) i32 (`weight_g_idx`)
 *
 * W = (value − zero) · scale.
 */
export type PackedEncoding = Readonly<z.infer<typeof packedSchema>>;

const NIBBLES = nibbleTables((field) => field - 8);
const BYTES = Float32Array.from({ length: 256 }, (_, field) => field - 128);

const INDEX_BYTES = 4;
const WORD_BYTES = 4;

const blocksOf = ({ scaleDtype, groupSize }: PackedEncoding): BlockScales => ({
  dtype: scaleDtype,
  rows: 1,
  cols: groupSize,
});
const rowBytes = (bits: number, cols: number): number => WORD_BYTES * wordsOf(cols, bits);

export const packedDecoder: Decoder<PackedEncoding> = {
  describe: ({ bits, groupSize, zeroRows }) => `${zeroRows ? 'asymmetric ' : ''}INT${bits} in groups of ${groupSize}`,
  storedBytes: (encoding, rows, cols) => ({
    data: rows * rowBytes(encoding.bits, cols),
    scales:
      blockScaleBytes(blocksOf(encoding), rows, cols) +
      encoding.zeroRows * Math.ceil(cols / encoding.groupSize) * WORD_BYTES +
      (encoding.reordered ? cols * INDEX_BYTES : 0),
  }),
  rowSpan: ({ bits }, cols, rows) => spanOfRows(rowBytes(bits, cols), rows),
  decode(encoding, cols, window, data, scales, target) {
    const { bits, zeroRows, reordered } = encoding;
    if (zeroRows || reordered || (bits !== 4 && bits !== 8)) {
      decodeFields(encoding, cols, window, data, scales, target);
      return;
    }
    const blocks = { blocks: blocksOf(encoding), cols, window, scales, stride: rowBytes(bits, cols) };
    if (bits === 4) multiplyNibbleBlocks(NIBBLES, blocks, data, target);
    else multiplyCodeBlocks(BYTES, blocks, data, target);
  },
  fault: ({ groupSize, reordered }, _, cols, scales) =>
    reordered ? groupFault(cols, Math.ceil(cols / groupSize), scales) : undefined,
};

/** Decodes one field after another, with any zero points and any order of groups. */
function decodeFields(
  { bits, scaleDtype, groupSize, zeroRows, reordered }: PackedEncoding,
  cols: number,
  { rows, columns }: Window,
  data: Uint8Array,
  scales: Uint8Array,
  target: Float32Array,
): void {
  const groups = Math.ceil(cols / groupSize);
  const indexBytes = reordered ? cols * INDEX_BYTES : 0;
  const zeroStart = scales.length - indexBytes - zeroRows * groups * WORD_BYTES;
  const across = groups * scaleBytes(scaleDtype);
  const end = rows.first + rows.count;
  if (zeroStart % across !== 0 || zeroStart < end * across || (zeroRows && wordsOf(end, bits) > zeroRows))
    throw new RangeError(`${scales.length} bytes of scales do not fit ${end} or more rows of ${groups} groups`);
  const factors = decodeScales(scaleDtype, scales.subarray(rows.first * across, end * across));
  const words = wordArray(data);
  const others = viewOf(scales);
  const groupOf = Int32Array.from({ length: columns.count }, (_, i) =>
    reordered
      ? others.getInt32(scales.length - indexBytes + (columns.first + i) * INDEX_BYTES, true)
      : Math.floor((columns.first + i) / groupSize),
  );
  if (groupOf.some((group) => group < 0 || group >= groups))
    throw new RangeError(`${scales.length} bytes of scales name a group that is none of ${groups}`);
  const stride = wordsOf(cols, bits);
  const mask = (1 << bits) - 1;
  const middle = 1 << (bits - 1);
  const zeros = new Int32Array(groups).fill(middle);
  for (let row = 0; row < rows.count; row++) {
    for (let group = 0; zeroRows && group < groups; group++) {
      const word = (index: number): number => others.getInt32(zeroStart + (index * groups + group) * WORD_BYTES, true);
      zeros[group] = fieldAt(word, rows.first + row, bits);
    }
    for (let i = 0; i < columns.count; i++) {
      const group = groupOf[i] as number;
      const at = (columns.first + i) * bits;
      const index = row * stride + (at >>> 5);
      const offset = at & 31;
      const low = (words[index] as number) >>> offset;
      const field = offset + bits > 32 ? low | ((words[index + 1] as number) << (32 - offset)) : low;
      target[row * columns.count + i] =
        ((field & mask) - (zeros[group] as number)) * (factors[row * groups + group] as number);
    }
  }
}
