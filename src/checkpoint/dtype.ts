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

/** A dtype whose values this program computes with. Everything else passes through as bytes. */
export type FloatDtype = 'F32' | 'F16' | 'BF16';

export const isFloatDtype = (dtype: string): dtype is FloatDtype =>
  dtype === 'F32' || dtype === 'F16' || dtype === 'BF16';

/** Bytes of one element of a dtype we compute with. */
export const floatBytes = (dtype: FloatDtype): number => (dtype === 'F32' ? 4 : 2);

/** Elements of a tensor; 1 for a scalar, 0 if any size is. Rounded above 2^53, infinite above 2^1024: more than any file has. */
export const elementCount = (shape: readonly number[]): number =>
  shape.includes(0) ? 0 : shape.reduce((count, size) => count * size, 1);

/** Bytes of a tensor, not whole where its elements do not fill them; undefined where the dtype is unknown. */
export function byteLength(dtype: string, shape: readonly number[]): number | undefined {
  const bits = Object.hasOwn(BITS, dtype) ? BITS[dtype] : undefined;
  return bits === undefined ? undefined : (bits * elementCount(shape)) / 8;
}
