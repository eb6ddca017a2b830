/**
 * Matrices whose `x.weight` holds codes, with their scales in `x.weight_scale` or a similar name:
 *
 * - FP8 with `x.weight_scale_inv` (DeepSeek-V3, Kimi-K2, Qwen3-FP8), one factor for each block of 128 × 128. Despite its name it
 *   multiplies. FP8 with `x.weight_scale` for blocks, rows, groups of columns or the whole matrix (compressed-tensors, ModelOpt),
 *   or with `x.scale` (DeepSeek-V4). MXFP8 is FP8 with an e8m0 scale for 32 columns.
 * - INT8 of compressed-tensors, symmetric
 * - FP4, two codes in each byte: MXFP4 (an e8m0 scale for 32 columns) and NVFP4 (an e4m3 scale for 16, and a scale of the matrix)
 */
import { QuantisedShapeError } from '../../errors.js';
import type { CodesEncoding } from '../encodings/codes.js';
import type { Fp4Encoding } from '../encodings/fp4.js';
import type { TensorInfo } from '../header.js';
import type { Checkpoint } from '../open-checkpoint.js';
import type { StoredMatrix } from '../stored-matrix.js';
import { positive, quantisationConfig, wantsPowersOfTwo, weightSchemes } from './config.js';
import { checkScalar, firstOf, misshapen, partOf, scaleDtypeOf, unsupported } from './parts.js';

/** The block size of DeepSeek-V3 and its successors, if the config has none. */
const DEFAULT_BLOCK = [128, 128] as const;
/** The block sizes of the OCP's microscaling formats and of DeepSeek-V4.1. */
const MX_BLOCKS = [
  [1, 32],
  [32, 32],
] as const;

type Block = readonly [rows: number, cols: number];

/** The possible names of the scales of the data `x.weight`. */
const scaleNames = (name: string): string[] => [
  `${name}_scale_inv`,
  `${name}_scale`,
  ...(name.endsWith('.weight') ? [name.replace(/weight$/, 'scale')] : []),
];

export function scaledMatrix(data: TensorInfo, checkpoint: Checkpoint): StoredMatrix {
  const { name, dtype } = data;
  const base = name.replace(/_packed$/, '');
  if (firstOf([base.replace(/weight$/, 'pre_quant_scale')], checkpoint))
    throw unsupported(data, 'its inputs are scaled too (AWQ or SmoothQuant of ModelOpt: pre_quant_scale)');
  const scales = partOf(data, scaleNames(base), checkpoint);
  if (isFp4(data, scales)) return fp4Matrix(data, base, scales, checkpoint);
  if (dtype === 'U8') throw unsupported(data, `it is U8 with scales that are ${scales.dtype} [${scales.shape}]`);
  if (checkpoint.tensors.has(`${base}_zero_point`)) throw unsupported(data, 'it is asymmetric INT8');
  const [rows, cols] = data.shape as [number, number];
  const [blockRows, blockCols] = blockSize(data, rows, cols, scales, checkpoint);
  const encoding: CodesEncoding = {
    kind: 'codes',
    dtype: dtype as CodesEncoding['dtype'],
    scaleDtype: scaleDtypeOf(scales),
    blockRows,
    blockCols,
    ...(wantsPowersOfTwo(checkpoint.config) && { powersOfTwo: true }),
  };
  return { name, rows, cols, encoding, data, scales, place: { tensor: name, element: 0 } };
}

/** Whether each byte holds two codes. DeepSeek-V4 stores them as I8, with an e8m0 scale for each 16 bytes. */
function isFp4({ dtype, shape }: TensorInfo, scales: TensorInfo): boolean {
  if (dtype === 'F4') return true;
  const perScale = (shape.at(-1) ?? 0) / (scales.shape.at(-1) ?? 1);
  if (dtype === 'I8') return scales.dtype === 'F8_E8M0' && perScale === 16;
  const isScale = scales.dtype === 'F8_E4M3' || scales.dtype === 'F8_E8M0' || scales.dtype === 'U8';
  return dtype === 'U8' && isScale && scales.shape.length === 2;
}

function fp4Matrix(data: TensorInfo, base: string, scales: TensorInfo, checkpoint: Checkpoint): StoredMatrix {
  const [rows, width] = data.shape as [number, number];
  const cols = data.dtype === 'F4' ? width : 2 * width;
  const [scaleRows, scaleCols = 0] = scales.shape;
  if (scales.shape.length !== 2 || scaleRows !== rows || cols % scaleCols !== 0)
    throw misshapen(data, `it holds [${rows},${cols}] values of 4 bits; ${scales.name} has [${scales.shape}]`);
  const divisor = firstOf([`${base}_global_scale`], checkpoint);
  const factor = firstOf([`${base}_scale_2`], checkpoint);
  const scaleDtype = scaleDtypeOf(scales);
  // e4m3 only reaches from 2⁻⁹ to 448, so NVFP4 always has a scale of the matrix too.
  const ofMatrix =
    scaleDtype === 'F8_E4M3' ? partOf(data, matrixScaleNames(data, base), checkpoint) : (factor ?? divisor);
  if (factor && divisor) throw unsupported(data, `it has both ${factor.name} and ${divisor.name}`);
  if (ofMatrix) checkScalar(data, ofMatrix);
  const encoding: Fp4Encoding = {
    kind: 'fp4',
    scaleDtype,
    groupSize: cols / scaleCols,
    matrixScale: factor ? 'multiplies' : divisor ? 'divides' : 'none',
  };
  const besides = ofMatrix && { besides: [ofMatrix] };
  return { name: base, rows, cols, encoding, data, scales, ...besides, place: { tensor: base, element: 0 } };
}

/** The possible names of the scale of the matrix. The likelier one is first, because an error names it if both are missing. */
const matrixScaleNames = ({ name }: TensorInfo, base: string): string[] =>
  name.endsWith('_packed') ? [`${base}_global_scale`, `${base}_scale_2`] : [`${base}_scale_2`, `${base}_global_scale`];

/** The first block size that fits the shape of the scales; configured sizes come first. Throws a `QuantisedShapeError`. */
export function blockSize(
  data: TensorInfo,
  rows: number,
  cols: number,
  scales: TensorInfo,
  checkpoint: Checkpoint,
  more: readonly Block[] = [],
): Block {
  const shape = withoutAxes(scales.shape);
  const [scaleRows = 1, scaleCols = 1] = shape;
  const configured = configuredBlocks(checkpoint);
  const blocks = configured.length ? configured : [DEFAULT_BLOCK];
  const isMx = scaleDtypeOf(scales) === 'F8_E8M0';
  const group: Block[] = cols % scaleCols === 0 ? [[1, cols / scaleCols]] : [];
  const fits = [
    ...blocks,
    [1, cols] as const,
    [rows, cols] as const,
    ...group,
    ...more,
    ...(isMx ? MX_BLOCKS : []),
  ].find(([r, c]) => shape.length <= 2 && Math.ceil(rows / r) === scaleRows && Math.ceil(cols / c) === scaleCols);
  if (fits) return fits;
  const [r, c] = blocks[0] as Block;
  throw new QuantisedShapeError(
    data.name,
    data.file,
    `it is [${data.shape}], so in blocks of ${r} × ${c} it has [${Math.ceil(rows / r)},${Math.ceil(cols / c)}] scales; ${scales.name} has [${scales.shape}]`,
  );
}

/** Removes the axes of size 1 from ModelOpt's (blocks down, 1, blocks across, 1). */
const withoutAxes = (shape: readonly number[]): readonly number[] =>
  shape.length === 4 && shape[1] === 1 && shape[3] === 1 ? [shape[0] as number, shape[2] as number] : shape;

/** The block sizes in the config: DeepSeek's `weight_block_size`, and compressed-tensors' `block_structure` or `group_size`. */
function configuredBlocks({ config }: Checkpoint): Block[] {
  const stated = [
    quantisationConfig(config)?.weight_block_size,
    ...weightSchemes(config).map(({ strategy, block_structure: block, group_size: size }) =>
      strategy === 'group' || strategy === 'tensor_group' ? [1, size] : block,
    ),
  ];
  return stated.flatMap((it) => {
    // Older compressed-tensors write "128x128".
    const pair = typeof it === 'string' ? it.split('x').map(Number) : it;
    const [rows, cols] = Array.isArray(pair) && pair.length === 2 ? pair.map(positive) : [];
    return rows && cols ? [[rows, cols] as const] : [];
  });
}
