/** Reads tensors that hold several matrices of one size, such as a layer's fused experts. */
import type { ByteRange } from '../../sources/files.js';
import { floatBytes, isFloatDtype } from '../dtype.js';
import type { StoredEncoding } from '../encoding.js';
import { scaleBytes } from '../encodings/block-scales.js';
import type { TensorInfo } from '../header.js';
import type { Checkpoint } from '../open-checkpoint.js';
import { wantsPowersOfTwo } from './config.js';
import { checkPart, misshapen, partOf, scaleDtypeOf, unsupported } from './parts.js';
import { blockSize } from './scaled.js';

export interface MatrixStack {
  readonly count: number;
  /** The size of each matrix as it is stored. */
  readonly rows: number;
  readonly cols: number;
  readonly encoding: StoredEncoding;
  readonly data: (matrix: number) => ByteRange;
  /** Undefined for plain floats. */
  readonly scales?: (matrix: number) => ByteRange;
}

/**
 * Describes a tensor of floats (n, rows, cols); of FP8 with `x_scale_inv`, `x_scale` or `x_weight_scale`; or of gpt-oss's MXFP4,
 * `x_blocks` (n, rows, cols / 32, 16) with `x_scales`. Throws an `InputError` for other formats and for parts that do not fit.
 */
export function matrixStack(tensor: TensorInfo, checkpoint: Checkpoint): MatrixStack {
  const { dtype, shape } = tensor;
  if (shape.includes(0) || shape.length < 3) throw misshapen(tensor, `it is [${shape}], not [experts, rows, cols]`);
  if (tensor.name.endsWith('_blocks')) return mxfp4Stack(tensor, checkpoint);
  const [count, rows, cols] = shape as [number, number, number];
  if (shape.length !== 3) throw unsupported(tensor, `it is ${dtype} [${shape}]`);
  if (isFloatDtype(dtype)) {
    const data = slicer(tensor, rows * cols * floatBytes(dtype));
    return { count, rows, cols, encoding: { kind: 'float', dtype }, data };
  }
  if (dtype !== 'F8_E4M3' && dtype !== 'F8_E5M2') throw unsupported(tensor, `fused experts are ${dtype}`);
  const suffixes = ['_scale_inv', '_scale', '_weight_scale'];
  const scales = partOf(
    tensor,
    suffixes.map((suffix) => `${tensor.name}${suffix}`),
    checkpoint,
  );
  const scaleDtype = scaleDtypeOf(scales);
  const shared = scales.shape.every((size) => size === 1) && count > 1;
  const own = { ...scales, shape: shared ? [] : scales.shape.slice(1) };
  if (!shared && scales.shape[0] !== count)
    throw misshapen(tensor, `it is [${shape}], ${scales.name} [${scales.shape}]`);
  // In transposed experts, one scale for each output channel is one scale for each column.
  const [blockRows, blockCols] = blockSize(tensor, rows, cols, own, checkpoint, [[rows, 1]]);
  const bytes = Math.ceil(rows / blockRows) * Math.ceil(cols / blockCols) * scaleBytes(scaleDtype);
  return {
    count,
    rows,
    cols,
    encoding: {
      ...{ kind: 'codes', dtype, scaleDtype, blockRows, blockCols },
      ...(wantsPowersOfTwo(checkpoint.config) && { powersOfTwo: true }),
    },
    data: slicer(tensor, rows * cols),
    scales: shared ? () => scales : slicer(scales, bytes),
  };
}

function mxfp4Stack(tensor: TensorInfo, checkpoint: Checkpoint): MatrixStack {
  const [count, rows, groups, bytes] = tensor.shape as [number, number, number, number];
  if (tensor.shape.length !== 4) throw misshapen(tensor, `it is [${tensor.shape}], not [experts, rows, groups, bytes]`);
  const scales = partOf(tensor, [tensor.name.replace(/_blocks$/, '_scales')], checkpoint);
  checkPart(tensor, scales, 'U8', [count, rows, groups]);
  return {
    count,
    rows,
    cols: groups * bytes * 2,
    encoding: { kind: 'fp4', scaleDtype: 'F8_E8M0', groupSize: bytes * 2, matrixScale: 'none' },
    data: slicer(tensor, rows * groups * bytes),
    scales: slicer(scales, rows * groups),
  };
}

const slicer =
  ({ file, start }: TensorInfo, bytes: number) =>
  (matrix: number): ByteRange => ({ file, start: start + matrix * bytes, end: start + (matrix + 1) * bytes });
