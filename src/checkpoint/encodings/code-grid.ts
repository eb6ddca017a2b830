/**
 * The numbers that codes can have, in units of their scale, and the inner loops that round to them: integers, and floats of 4 or 8
 * bits. The loops use no tables and no function calls, and JavaScript's f64.
 */

/** The codes of a matrix, without their scales. */
export interface CodeGrid {
  /** The largest magnitude on both sides of 0. Scales are chosen so that it becomes the largest weight of a block. */
  readonly largest: number;
  /** The code's value that is nearest to `x`, ties to even; the first or the last one if `x` is beyond it. */
  round(x: number): number;
  /**
   * The sum of (value − code · scale)² over `count` values from `values[from]` on; at least `limit`, and not the whole sum, if it
   * reaches that.
   * @param scale above 0
   */
  squaredError(values: Float32Array, from: number, count: number, scale: number, limit: number): number;
  /**
   * Writes the codes of `count` values from `values[from]` on as bits, one code in each byte, from `codes[to]` on. A quotient is
   * rounded to f32 and then to a code, as in PyTorch's `(w / scale).to(float8)` and `round(w / scale)`.
   * @param scale with 0, every code is 0
   */
  encode(values: Float32Array, from: number, count: number, scale: number, codes: Uint8Array, to: number): void;
}

/** Added to and taken from a number below 2^51, it rounds to a whole number in f64, ties to even. */
const TO_WHOLE = 1.5 * 2 ** 52;

/** Values between two looks at the limit. */
const RUN = 16;

/** The whole numbers from −2^(bits − 1) to 2^(bits − 1) − 1. The bits of a code are value + offset, in two's complement. */
export function integerGrid(bits: number, offset: number): CodeGrid {
  const lowest = -(2 ** (bits - 1));
  const highest = 2 ** (bits - 1) - 1;
  return {
    largest: Math.max(highest, 1), // one bit has −1 and 0
    round: (x) => Math.min(Math.max(x, lowest), highest) + TO_WHOLE - TO_WHOLE,
    squaredError: (values, from, count, scale, limit) =>
      integerError(lowest, highest, values, from, from + count, scale, limit),
    encode(values, from, count, scale, codes, to) {
      encodeIntegers(lowest, highest, offset, values, from, count, scale, codes, to);
    },
  };
}

function integerError(
  lowest: number,
  highest: number,
  values: Float32Array,
  from: number,
  end: number,
  scale: number,
  limit: number,
): number {
  const inverse = 1 / scale;
  let sum = 0;
  for (let i = from; i < end && sum < limit; ) {
    for (const stop = Math.min(i + RUN, end); i < stop; i++) {
      const value = values[i] as number;
      const quotient = value * inverse;
      const clamped = quotient < lowest ? lowest : quotient > highest ? highest : quotient;
      const difference = (clamped + TO_WHOLE - TO_WHOLE) * scale - value;
      sum += difference * difference;
    }
  }
  return sum;
}

function encodeIntegers(
  lowest: number,
  highest: number,
  offset: number,
  values: Float32Array,
  from: number,
  count: number,
  scale: number,
  codes: Uint8Array,
  to: number,
): void {
  for (let i = 0; i < count; i++) {
    const quotient = scale === 0 ? 0 : Math.fround((values[from + i] as number) / scale);
    const clamped = quotient < lowest ? lowest : quotient > highest ? highest : quotient;
    codes[to + i] = clamped + TO_WHOLE - TO_WHOLE + offset;
  }
}

/** A float with a sign, an exponent and a fraction, without infinities. Exponent 0 means subnormal. */
interface SmallFloat {
  readonly fractionBits: number;
  readonly bias: number;
  readonly largest: number;
  /** The bits of the largest number. */
  readonly last: number;
  /** The bit of the sign. */
  readonly sign: number;
}

/** @param format of at most 8 bits */
function smallFloatGrid(format: SmallFloat): CodeGrid {
  const { largest, fractionBits, bias } = format;
  const smallestNormal = 2 ** (1 - bias);
  const toStep = TO_WHOLE * 2 ** (1 - bias - fractionBits);
  // Veltkamp's splitting keeps the upper fractionBits + 1 of the 53 significant bits of an f64.
  const split = 2 ** (52 - fractionBits) + 1;
  const [one, code] = [new Float32Array(1), new Uint8Array(1)];
  return {
    largest,
    round(x) {
      one[0] = x;
      encodeSmallFloats(format, one, 0, 1, 1, code, 0);
      return smallFloatValue(format, code[0] as number);
    },
    squaredError: (values, from, count, scale, limit) =>
      smallFloatError(largest, smallestNormal, toStep, split, values, from, from + count, scale, limit),
    encode(values, from, count, scale, codes, to) {
      encodeSmallFloats(format, values, from, count, scale, codes, to);
    },
  };
}

/** The way in which ties are rounded does not matter here: either side has the same error. */
function smallFloatError(
  largest: number,
  smallestNormal: number,
  toStep: number,
  split: number,
  values: Float32Array,
  from: number,
  end: number,
  scale: number,
  limit: number,
): number {
  const inverse = 1 / scale;
  let sum = 0;
  for (let i = from; i < end && sum < limit; ) {
    for (const stop = Math.min(i + RUN, end); i < stop; i++) {
      const value = Math.abs(values[i] as number);
      let quotient = value * inverse;
      if (quotient > largest) quotient = largest;
      const product = quotient * split;
      const rounded = quotient < smallestNormal ? quotient + toStep - toStep : product - (product - quotient);
      const difference = rounded * scale - value;
      sum += difference * difference;
    }
  }
  return sum;
}

/** The quotients whose bits are looked at together. */
const quotients = new Float32Array(256);
const patterns = new Uint32Array(quotients.buffer);

function encodeSmallFloats(
  { fractionBits, bias, largest, last, sign }: SmallFloat,
  values: Float32Array,
  from: number,
  count: number,
  scale: number,
  codes: Uint8Array,
  to: number,
): void {
  const smallestNormal = 2 ** (1 - bias);
  const steps = 2 ** (bias + fractionBits - 1);
  const lost = 23 - fractionBits;
  const half = 2 ** (lost - 1) - 1;
  const rebias = (127 - bias) << fractionBits;
  for (let done = 0; done < count; done += quotients.length) {
    const end = Math.min(quotients.length, count - done);
    for (let i = 0; i < end; i++) quotients[i] = scale === 0 ? 0 : (values[from + done + i] as number) / scale;
    for (let i = 0; i < end; i++) {
      const bits = patterns[i] as number;
      const magnitude = bits & 0x7fffffff;
      const absolute = Math.abs(quotients[i] as number);
      let code: number;
      if (absolute < smallestNormal) code = absolute * steps + TO_WHOLE - TO_WHOLE;
      else if (absolute >= largest) code = last;
      // Ties go to the even code. A carry into the exponent gives the right result.
      else code = ((magnitude + half + ((magnitude >>> lost) & 1)) >>> lost) - rebias;
      codes[to + done + i] = (bits >>> 31) * sign + code;
    }
  }
}

function smallFloatValue({ fractionBits, bias, sign }: SmallFloat, code: number): number {
  const magnitude = code & (sign - 1);
  const exponent = magnitude >>> fractionBits;
  const fraction = magnitude & ((1 << fractionBits) - 1);
  const significand = exponent === 0 ? fraction : fraction + (1 << fractionBits);
  const value = significand * 2 ** (Math.max(exponent, 1) - bias - fractionBits);
  return code & sign ? -value : value;
}

/** The formats of OCP 8-bit Floating Point 1.0 and OCP Microscaling Formats 1.0. Values beyond the largest finite one become that. */
export const E4M3_GRID = smallFloatGrid({ fractionBits: 3, bias: 7, largest: 448, last: 0x7e, sign: 0x80 });
export const E5M2_GRID = smallFloatGrid({ fractionBits: 2, bias: 15, largest: 57344, last: 0x7b, sign: 0x80 });
export const E2M1_GRID = smallFloatGrid({ fractionBits: 1, bias: 1, largest: 6, last: 7, sign: 0x8 });
