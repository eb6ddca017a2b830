/** 8-bit codes with a scale for each block: FP8, MXFP8, INT8. */
import { z } from 'zod';
import { float8Values } from '../float8.js';
import { type BlockScales, blockScaleBytes, multiplyCodeBlocks, scaleDtype } from './block-scales.js';
import { type Decoder, size, spanOfRows } from './decoder.js';

export const codesSchema = z.strictObject({
  kind: z.literal('codes'),
  dtype: z.enum(['F8_E4M3', 'F8_E5M2', 'I8']),
  scaleDtype,
  blockRows: size,
  blockCols: size,
  /** Whether rebuilt weights get scales that are powers of two. It makes no difference for reading. */
  powersOfTwo: z.literal(true).optional(),
});

/**
 * W = code · scale of its block. The scales are (⌈rows / blockRows⌉, ⌈cols / blockCols⌉), row-major. DeepSeek-V3 has blocks of
 * 128 × 128, MXFP8 of 1 × 32. One scale for the whole tensor is a block of rows × cols. One scale for each output channel is a
 * block of 1 × cols.
 */
export type CodesEncoding = Readonly<z.infer<typeof codesSchema>>;

const blocksOf = ({ scaleDtype, blockRows, blockCols }: CodesEncoding): BlockScales => ({
  dtype: scaleDtype,
  rows: blockRows,
  cols: blockCols,
});

/** The value of each byte in two's complement. */
const INT8 = Float32Array.from({ length: 256 }, (_, code) => (code << 24) >> 24);

export const codesDecoder: Decoder<CodesEncoding> = {
  describe: ({ dtype, blockRows, blockCols }) => `${dtype} in ${blockRows} × ${blockCols} blocks`,
  storedBytes: (encoding, rows, cols) => ({
    data: rows * cols,
    scales: blockScaleBytes(blocksOf(encoding), rows, cols),
  }),
  rowSpan: (_, cols, rows) => spanOfRows(cols, rows),
  decode(encoding, cols, window, data, scales, target) {
    const values = encoding.dtype === 'I8' ? INT8 : float8Values(encoding.dtype);
    multiplyCodeBlocks(values, { blocks: blocksOf(encoding), cols, window, scales, stride: cols }, data, target);
  },
};
