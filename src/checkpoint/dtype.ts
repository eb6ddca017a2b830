/** Bits of one element, by the name in a safetensors header (safetensors 0.6 `Dtype`). */
const BITS: Readonly<Record<string, number>> = {
  F4: 4,
  F6_E2M3: 6,
  F6_E3M2: 6,
  BOOL: 8,
  U8: 8,
  I8: 8,
  F8_E5M2: 8,
  F8_E4M3: 8,
  F8_E8M0: 8,
  I16: 16,
  U16: 16,
  F16: 16,
  BF16: 16,
  I32: 32,
  U32: 32,
  F32: 32,
  C64: 64,
  F64: 64,
  I64: 64,
  U64: 64,
};

/** A dtype that this program computes with. Tensors of other dtypes are copied as bytes. */
export type FloatDtype = 'F32' | 'F16' | 'BF16';

/** Whether this program computes with a dtype. */
export const isFloatDtype = (dtype: string): dtype is FloatDtype =>
  dtype === 'F32' || dtype === 'F16' || dtype === 'BF16';

/** Bytes of one element. */
export const floatBytes = (dtype: FloatDtype): number => (dtype === 'F32' ? 4 : 2);

/** Number of elements of a tensor; 1 for a scalar. It is rounded above 2^53 and infinite above 2^1024, which no file reaches. */
export const elementCount = (shape: readonly number[]): number =>
  shape.includes(0) ? 0 : shape.reduce((count, size) => count * size, 1);

/** Bytes of a tensor; undefined for an unknown dtype. Not a whole number if elements of less than 8 bits do not fill the last byte. */
export function byteLength(dtype: string, shape: readonly number[]): number | undefined {
  const bits = Object.hasOwn(BITS, dtype) ? BITS[dtype] : undefined;
  return bits === undefined ? undefined : (bits * elementCount(shape)) / 8;
}
