/** 4-bit floats with a scale for each group of columns: MXFP4, NVFP4. */
import { z } from 'zod';
import { floatsOf } from '../codec.js';
import { nibbleTables } from '../multiply-codes.js';
import { type BlockScales, blockScaleBytes, multiplyNibbleBlocks, scaleDtype } from './block-scales.js';
import { type Decoder, size, spanOfRows } from './decoder.js';

export const fp4Schema = z.strictObject({
  kind: z.literal('fp4'),
  scaleDtype,
  groupSize: size,
  /** The effect of the scale of the whole matrix: ModelOpt multiplies by it, compressed-tensors divides by it. */
  matrixScale: z.enum(['none', 'multiplies', 'divides']),
});

/**
 * W = code · scale of its group. The codes are (rows, ⌈cols / 2⌉) U8, two e2m1 in each byte, the lower half first. The scales are
 * (rows, ⌈cols / groupSize⌉). MXFP4 has groups of 32 and scales in e8m0 (OCP Microscaling Formats 1.0). NVFP4 has groups of 16,
 * scales in e4m3, and after them one f32 that multiplies or divides each scale.
 */
export type Fp4Encoding = Readonly<z.infer<typeof fp4Schema>>;

/** The values of e2m1: a sign, two bits of exponent with bias 1, and one bit of fraction. */
const E2M1 = [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6];
const TABLES = nibbleTables((field) => E2M1[field] as number);

const MATRIX_SCALE_BYTES = 4;

const blocksOf = ({ scaleDtype, groupSize }: Fp4Encoding): BlockScales => ({
  dtype: scaleDtype,
  rows: 1,
  cols: groupSize,
});
const matrixScaleBytes = ({ matrixScale }: Fp4Encoding): number => (matrixScale === 'none' ? 0 : MATRIX_SCALE_BYTES);

export const fp4Decoder: Decoder<Fp4Encoding> = {
  describe: ({ scaleDtype, groupSize, matrixScale }) =>
    `${matrixScale === 'none' && scaleDtype === 'F8_E8M0' ? 'MXFP4' : matrixScale === 'none' ? 'FP4' : 'NVFP4'} in groups of ${groupSize}`,
  storedBytes: (encoding, rows, cols) => ({
    data: rows * Math.ceil(cols / 2),
    scales: blockScaleBytes(blocksOf(encoding), rows, cols) + matrixScaleBytes(encoding),
  }),
  rowSpan: (_, cols, rows) => spanOfRows(Math.ceil(cols / 2), rows),
  decode(encoding, cols, window, data, scales, target) {
    const ofGroups = scales.subarray(0, Math.max(0, scales.length - matrixScaleBytes(encoding)));
    const [ofMatrix = 1] = floatsOf('F32', scales.subarray(ofGroups.length));
    const { matrixScale } = encoding;
    const outer = (scale: number): number => (matrixScale === 'divides' ? scale / ofMatrix : scale * ofMatrix);
    const blocks = { blocks: blocksOf(encoding), cols, window, scales: ofGroups, stride: Math.ceil(cols / 2) };
    multiplyNibbleBlocks(TABLES, matrixScale === 'none' ? blocks : { ...blocks, outer }, data, target);
  },
};
