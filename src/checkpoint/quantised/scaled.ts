/**
 * `x.weight` whose elements are codes, and `x.weight_scale` or the like:
 *
 * - FP8 (DeepSeek-V3, Kimi-K2, Qwen3-FP8): `x.weight_scale_inv`, one factor for each block of 128 × 128. Despite its name it
 *   multiplies. `x.weight_scale` for blocks, rows, groups of columns or all (compressed-tensors, ModelOpt); `x.scale`
 *   (DeepSeek-V4). With e8m0 scales by 32 it is MXFP8.
 * - INT8 of compressed-tensors, symmetric
 * - FP4, two codes a byte: MXFP4 (e8m0 by 32), NVFP4 (e4m3 by 16, and a scale of the matrix)
 */
import { QuantisedShapeError } from '../../errors.js';
import type { CodesEncoding } from '../encodings/codes.js';
import type { Fp4Encoding } from '../encodings/fp4.js';
import type { TensorInfo } from '../header.js';
import type { Checkpoint } from '../open-checkpoint.js';
import type { StoredMatrix } from '../stored-matrix.js';
import { positive, quantisationConfig, weightSchemes } from './config.js';
import { checkScalar, firstOf, misshapen, partOf, scaleDtypeOf, unsupported } from './parts.js';

/** What DeepSeek-V3 and all that followed it use; the config may say otherwise. */
const DEFAULT_BLOCK = [128, 128] as const;
/** Of the OCP's microscaling formats, and of DeepSeek-V4.1 */
const MX_BLOCKS = [
  [1, 32],
  [32, 32],
] as const;

type Block = readonly [rows: number, cols: number];

/** The names that scales go by, for the data `x.weight`. */
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
  };
  return { name, rows, cols, encoding, data, scales, place: { tensor: name, element: 0 } };
}

/** Two codes a byte. DeepSeek-V4 has them as I8, with an e8m0 scale for each 16 bytes. */
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
  // Scales in e4m3 alone reach from 2⁻⁹ to 448 only: NVFP4 never comes without a scale of the matrix.
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

/** The likelier one first: it is named where both are missing. */
const matrixScaleNames = ({ name }: TensorInfo, base: string): string[] =>
  name.endsWith('_packed') ? [`${base}_global_scale`, `${base}_scale_2`] : [`${base}_scale_2`, `${base}_global_scale`];

/** The size of blocks that the shape of the scales allows, the configured ones first. */
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

/** ModelOpt keeps (blocks down, 1, blocks across, 1). */
const withoutAxes = (shape: readonly number[]): readonly number[] =>
  shape.length === 4 && shape[1] === 1 && shape[3] === 1 ? [shape[0] as number, shape[2] as number] : shape;

/** `weight_block_size` of DeepSeek; `block_structure` or `group_size` of compressed-tensors' groups. */
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
