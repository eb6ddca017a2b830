/** Values of the 256 codes of 8-bit floats. Formats: OCP 8-bit Floating Point 1.0, OCP Microscaling Formats 1.0. */
export type Float8Dtype = 'F8_E4M3' | 'F8_E5M2' | 'F8_E8M0';

const tables = new Map<Float8Dtype, Float32Array>();

/** A table from codes to values, exact in f32. Built at first use. */
export function float8Values(dtype: Float8Dtype): Float32Array {
  let table = tables.get(dtype);
  if (!table) {
    const value = { F8_E4M3: e4m3, F8_E5M2: e5m2, F8_E8M0: e8m0 }[dtype];
    table = Float32Array.from({ length: 256 }, (_, code) => value(code));
    tables.set(dtype, table);
  }
  return table;
}

/** Checkpoints use the variant without infinities (`float8_e4m3fn`). Only the last code of each sign is NaN. */
const e4m3 = (code: number): number => ((code & 0x7f) === 0x7f ? Number.NaN : signed(code, 3, 7));

/** Infinities and NaNs are encoded as in IEEE 754. */
function e5m2(code: number): number {
  const magnitude = code & 0x7f;
  if (magnitude > 0x7c) return Number.NaN;
  if (magnitude === 0x7c) return code === 0x7c ? Number.POSITIVE_INFINITY : Number.NEGATIVE_INFINITY;
  return signed(code, 2, 15);
}

/** A power of two. There is no zero and no sign. The smallest value, 2⁻¹²⁷, is subnormal in f32. */
const e8m0 = (code: number): number => (code === 255 ? Number.NaN : 2 ** (code - 127));

/** A float with sign, exponent and fraction. Exponent 0 means subnormal. */
function signed(code: number, fractionBits: number, bias: number): number {
  const exponent = (code & 0x7f) >>> fractionBits;
  const fraction = code & ((1 << fractionBits) - 1);
  const significand = exponent === 0 ? fraction : fraction + (1 << fractionBits);
  const magnitude = significand * 2 ** (Math.max(exponent, 1) - bias - fractionBits);
  return code & 0x80 ? -magnitude : magnitude;
}
