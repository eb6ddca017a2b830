/** Conversion between stored bytes (little-endian) and f32. */
import { OverflowError } from '../errors.js';
import { type FloatDtype, floatBytes } from './dtype.js';
import { widenBfloat16, widenHalf } from './widen.js';

/** f16 bit pattern → f32 bit pattern. Built at first use; 256 KiB. */
let halfTable: Uint32Array | undefined;

function halfBits(): Uint32Array {
  if (halfTable) return halfTable;
  halfTable = new Uint32Array(65536);
  const f32 = new Float32Array(1);
  const u32 = new Uint32Array(f32.buffer);
  for (let h = 0; h < 65536; h++) {
    const sign = (h & 0x8000) << 16;
    const exponent = (h >>> 10) & 0x1f;
    const fraction = h & 0x3ff;
    if (exponent === 0) {
      f32[0] = fraction * 2 ** -24; // subnormal: exact in f32
      halfTable[h] = sign | (u32[0] as number);
    } else if (exponent === 31) {
      halfTable[h] = sign | 0x7f800000 | (fraction << 13);
    } else {
      halfTable[h] = sign | ((exponent + 112) << 23) | (fraction << 13);
    }
  }
  return halfTable;
}

/** The bytes as 16- or 32-bit words. Bytes that are not aligned are copied. */
function words<T>(
  bytes: Uint8Array,
  type: { new (buffer: ArrayBufferLike, offset: number, length: number): T; BYTES_PER_ELEMENT: number },
): T {
  const size = type.BYTES_PER_ELEMENT;
  const aligned = bytes.byteOffset % size === 0 ? bytes : new Uint8Array(bytes); // slice() of a Buffer copies nothing
  return new type(aligned.buffer, aligned.byteOffset, bytes.byteLength / size);
}

/** Decodes all elements of `bytes` into `target`. Exact for all three dtypes. */
export function decodeFloats(dtype: FloatDtype, bytes: Uint8Array, target: Float32Array): void {
  if (dtype === 'F32') {
    target.set(words(bytes, Float32Array));
    return;
  }
  const count = bytes.byteLength / 2;
  if (dtype === 'F16') {
    widenHalf(halfBits(), words(bytes, Uint16Array), new Uint32Array(target.buffer, target.byteOffset, count));
    return;
  }
  const even = count - (count % 2);
  const bits = new Int32Array(target.buffer, target.byteOffset, count);
  widenBfloat16(words(bytes.subarray(0, 2 * even), Int32Array), bits);
  if (even < count) bits[even] = ((bytes[2 * even] as number) << 16) | ((bytes[2 * even + 1] as number) << 24);
}

/** Decodes bytes into a new array. */
export function floatsOf(dtype: FloatDtype, bytes: Uint8Array): Float32Array {
  const values = new Float32Array(bytes.byteLength / floatBytes(dtype));
  decodeFloats(dtype, bytes, values);
  return values;
}

/** Like `encodeFloats`, but throws an `OverflowError` that names the tensor if a value is too large for the dtype. */
export function encodeFinite(dtype: FloatDtype, values: Float32Array, tensor: string): Uint8Array<ArrayBuffer> {
  const bytes = encodeFloats(dtype, values);
  if (!allFinite(dtype, bytes)) throw new OverflowError(tensor, dtype);
  return bytes;
}

/**
 * Encodes values, rounded to the nearest value of `dtype`, ties to even. A value that is too large becomes infinite.
 * The bytes go into `memory` if it is given, large enough and aligned; otherwise new memory is allocated.
 */
export function encodeFloats(dtype: FloatDtype, values: Float32Array): Uint8Array<ArrayBuffer>;
export function encodeFloats(dtype: FloatDtype, values: Float32Array, memory: Uint8Array | undefined): Uint8Array;
export function encodeFloats(dtype: FloatDtype, values: Float32Array, memory?: Uint8Array): Uint8Array {
  const size = values.length * floatBytes(dtype);
  const fits = memory !== undefined && memory.byteLength >= size && memory.byteOffset % 4 === 0;
  const bytes = fits ? memory.subarray(0, size) : new Uint8Array(size);
  if (dtype === 'F32') {
    new Float32Array(bytes.buffer, bytes.byteOffset, values.length).set(values);
    return bytes;
  }
  const target = new Uint16Array(bytes.buffer, bytes.byteOffset, values.length);
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  const round = dtype === 'BF16' ? toBfloat16 : toHalf;
  for (let i = 0; i < target.length; i++) target[i] = round(bits[i] as number);
  return bytes;
}

function toBfloat16(bits: number): number {
  if ((bits & 0x7fffffff) > 0x7f800000) return (bits >>> 16) | 0x40; // NaN stays NaN
  return (bits + 0x7fff + ((bits >>> 16) & 1)) >>> 16;
}

function toHalf(bits: number): number {
  const sign = (bits >>> 16) & 0x8000;
  const magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00; // ≥ 65520 rounds to infinity
  if (magnitude >= 0x38800000) {
    // A normal number loses 13 fraction bits, ties to even. A carry into the exponent gives the right result.
    return sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >>> 13) & 1)) >>> 13);
  }
  if (magnitude < 0x33000000) return sign; // below half the smallest subnormal
  const shift = 126 - (magnitude >>> 23); // 14 … 24
  const fraction = (magnitude & 0x7fffff) | 0x800000;
  const half = 1 << (shift - 1);
  const odd = (fraction >>> shift) & 1;
  return sign | ((fraction + half - 1 + odd) >>> shift);
}

/** True when every encoded value is finite. */
export function allFinite(dtype: FloatDtype, bytes: Uint8Array): boolean {
  if (dtype === 'F32') {
    for (const bits of words(bytes, Uint32Array)) if ((bits & 0x7f800000) === 0x7f800000) return false;
    return true;
  }
  const mask = dtype === 'BF16' ? 0x7f80 : 0x7c00;
  for (const bits of words(bytes, Uint16Array)) if ((bits & mask) === mask) return false;
  return true;
}
