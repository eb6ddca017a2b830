/** The tensors that accompany the data of a quantised matrix. */
import { MissingScaleError, QuantisedShapeError, UnsupportedQuantisationError } from '../../errors.js';
import { SCALE_DTYPES, type ScaleDtype } from '../encodings/block-scales.js';
import type { TensorInfo } from '../header.js';
import type { Checkpoint } from '../open-checkpoint.js';

export const unsupported = ({ name, file }: TensorInfo, what: string): UnsupportedQuantisationError =>
  new UnsupportedQuantisationError(name, file, what);

export const misshapen = ({ name, file }: TensorInfo, what: string): QuantisedShapeError =>
  new QuantisedShapeError(name, file, what);

/** The first of these tensors that exists. */
export const firstOf = (names: readonly string[], { tensors }: Checkpoint): TensorInfo | undefined =>
  names.map((name) => tensors.get(name)).find((it) => it !== undefined);

/** The first of these tensors that exists. If none does, throws a `MissingScaleError` that has the first name. */
export function partOf(data: TensorInfo, names: readonly string[], checkpoint: Checkpoint): TensorInfo {
  const part = firstOf(names, checkpoint);
  if (!part) throw new MissingScaleError(data.name, data.file, names[0] as string);
  return part;
}

/** The dtype of scales. Scales that are stored as U8 are e8m0 (OCP Microscaling Formats 1.0). */
export function scaleDtypeOf(scales: TensorInfo): ScaleDtype {
  const dtype = scales.dtype === 'U8' ? 'F8_E8M0' : scales.dtype;
  if (!SCALE_DTYPES.some((it) => it === dtype)) throw unsupported(scales, `its scales are ${dtype}`);
  return dtype as ScaleDtype;
}

/** Throws a `QuantisedShapeError` if a part does not have this dtype and shape. */
export function checkPart(data: TensorInfo, part: TensorInfo, dtype: string, shape: readonly number[]): void {
  if (part.dtype !== dtype || String(part.shape) !== String(shape))
    throw misshapen(data, `${part.name} is ${part.dtype} [${part.shape}], expected ${dtype} [${shape}]`);
}

/** Throws a `QuantisedShapeError` if the scale of the whole matrix is not a single f32. All sizes of its shape must be 1. */
export function checkScalar(data: TensorInfo, part: TensorInfo): void {
  if (part.dtype !== 'F32' || part.shape.some((size) => size !== 1))
    throw misshapen(data, `${part.name} is ${part.dtype} [${part.shape}], expected one F32`);
}
