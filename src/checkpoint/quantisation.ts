/**
 * Finds the tensors that together are one quantised matrix. They may lie in different shards. The kinds of quantisation are in
 * ./quantised: codes with scales (FP8, INT8, FP4), packed integers, GPTQ and AWQ.
 */
import type { TensorInfo } from './header.js';
import type { Checkpoint } from './open-checkpoint.js';
import { foreignMatrix, foreignQuantisation } from './quantised/foreign.js';
import { groupedMatrix } from './quantised/grouped.js';
import { packedMatrix } from './quantised/packed.js';
import { unsupported } from './quantised/parts.js';
import { scaledMatrix } from './quantised/scaled.js';
import type { StoredMatrix } from './stored-matrix.js';

export { quantisationConfig } from './quantised/config.js';

/** Names of tensors with packed values: `x.weight_packed`, `x.qweight`, and `x_blocks` for fused experts. */
const PACKED = /^(.+)(?:\.weight_packed|\.qweight|_blocks)$/;
/** Names of tensors that belong to data: its scales, zero points and shape, and scales of activations. */
const ATTACHMENT =
  /^(.+)\.(?:weight_(?:scale_inv|scale_2|scale|global_scale|zero_point|shape|g_idx)|(?:input|activation|output|k|v)_scale|input_global_scale|scale|scales|qzeros|g_idx)$/;
/** Names of tensors that belong to the data of fused experts. */
const FUSED_ATTACHMENT = /^(.+\.experts\.\w+?)_(?:scale_inv|scale|scales|weight_scale|input_scale)$/;

/** Whether a dtype is one of the 8-bit floats that weights are stored in. */
export const isFp8 = (dtype: string): dtype is 'F8_E4M3' | 'F8_E5M2' => dtype === 'F8_E4M3' || dtype === 'F8_E5M2';

/** Whether a tensor holds the data of one or several quantised matrices. */
export function isQuantised({ name, dtype, shape }: TensorInfo): boolean {
  if (ATTACHMENT.test(name) || FUSED_ATTACHMENT.test(name)) return false; // scales can be FP8 themselves
  if (isFp8(dtype) || dtype === 'F4') return true;
  if (PACKED.test(name)) return !name.endsWith('_blocks') || (dtype === 'U8' && shape.length === 4);
  return /^(?:U8|I8|U32)$/.test(dtype) && name.endsWith('.weight');
}

/** The data tensor that a scale, a shape or the like belongs to; undefined for any other tensor. */
export function attachedTo({ name }: TensorInfo, { tensors }: Checkpoint): TensorInfo | undefined {
  const base = ATTACHMENT.exec(name)?.[1];
  const fused = FUSED_ATTACHMENT.exec(name)?.[1];
  const candidates = [
    ...(base === undefined ? [] : [`${base}.weight`, `${base}.weight_packed`, `${base}.qweight`]),
    ...(fused === undefined ? [] : [fused, `${fused}_blocks`]),
  ];
  return candidates.map((it) => tensors.get(it)).find((it) => it !== undefined && isQuantised(it));
}

/** The name that the matrix with this data tensor has if it is not quantised. For most tensors, it is the tensor's own name. */
export function matrixName(name: string): string {
  const [, base] = PACKED.exec(name) ?? [];
  if (base === undefined) return foreignMatrix(name) ?? name;
  return name.endsWith('_blocks') ? base : `${base}.weight`;
}

/** The tensor that holds the data of a weight, quantised or not. */
export const dataOf = (weight: string, { tensors }: Checkpoint): TensorInfo | undefined =>
  tensors.get(weight) ?? tensors.get(`${weight}_packed`) ?? tensors.get(weight.replace(/\.weight$/, '.qweight'));

/**
 * The matrix whose data this tensor holds. Throws a `MissingScaleError` if its scales are missing, a `QuantisedShapeError` if they
 * do not fit, and an `UnsupportedQuantisationError` if its format is not decoded.
 */
export function quantisedMatrix(data: TensorInfo, checkpoint: Checkpoint): StoredMatrix {
  const foreign = foreignQuantisation(data, checkpoint);
  if (foreign) throw unsupported(data, `it is ${foreign}`);
  if (data.shape.length !== 2 || data.shape.includes(0))
    throw unsupported(data, `it is ${data.dtype} of shape [${data.shape}], not a matrix`);
  if (data.name.endsWith('.weight_packed')) return packedMatrix(data, checkpoint);
  if (data.name.endsWith('.qweight')) return groupedMatrix(data, checkpoint);
  if (data.dtype === 'U32') throw unsupported(data, 'it is U32');
  return scaledMatrix(data, checkpoint);
}
