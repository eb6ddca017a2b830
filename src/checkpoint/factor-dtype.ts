/** The dtypes in which factors are stored: floats, and quantised dtypes, in which some columns of a row share a scale. */
import { z } from 'zod';
import type { FloatDtype } from './dtype.js';
import { floatBytes } from './dtype.js';
import type { StoredEncoding } from './encoding.js';
import { wordsOf } from './encodings/bit-fields.js';

/** The names of the float dtypes in options and configs, and their names in safetensors. */
export const FLOAT_NAMES = { float32: 'F32', float16: 'F16', bfloat16: 'BF16' } as const;

/** The names of the quantised dtypes. `fp8` is e4m3 without infinities; the others are signed integers. */
export const QUANTISED_NAMES = ['int8', 'fp8', 'int6', 'int5', 'int4'] as const;
/** The codes of a quantised dtype. */
export type QuantisedName = (typeof QUANTISED_NAMES)[number];

/** A quantised dtype: value = code · scale. */
export interface QuantisedDtype {
  readonly code: QuantisedName;
  /** The columns of a row that share one BF16 scale. The last group of a row may have fewer. */
  readonly scaleGroup: number;
}

/** The dtype in which a factor is stored. */
export type FactorDtype = FloatDtype | QuantisedDtype;

/** The schema of a `FactorDtype`. */
export const factorDtypeSchema = z.union([
  z.enum(['F32', 'F16', 'BF16']),
  z
    .strictObject({
      code: z.enum(QUANTISED_NAMES),
      scaleGroup: z
        .int()
        .positive()
        .max(2 ** 24),
    })
    .readonly(),
]);

/** Whether a dtype is quantised. */
export const isQuantisedDtype = (dtype: FactorDtype): dtype is QuantisedDtype => typeof dtype !== 'string';

/** Whether an option or a config names a quantised dtype. */
export const isQuantisedName = (name: unknown): name is QuantisedName =>
  QUANTISED_NAMES.some((known) => known === name);

/** The name of a dtype in options and configs. */
export const dtypeName = (dtype: FactorDtype): string =>
  isQuantisedDtype(dtype)
    ? dtype.code
    : (Object.entries(FLOAT_NAMES).find(([, known]) => known === dtype) as [string, FloatDtype])[0];

/** The dtype with this name; undefined if there is none. */
export function dtypeNamed(name: unknown, scaleGroup: number): FactorDtype | undefined {
  if (isQuantisedName(name)) return { code: name, scaleGroup };
  return typeof name === 'string' && Object.hasOwn(FLOAT_NAMES, name)
    ? FLOAT_NAMES[name as keyof typeof FLOAT_NAMES]
    : undefined;
}

/** Codes of fewer than eight bits are packed into words. */
const PACKED_BITS: Readonly<Partial<Record<QuantisedName, number>>> = { int6: 6, int5: 5, int4: 4 };

/** The bits of each code, if codes are packed into words. */
export const packedBits = (dtype: FactorDtype): number | undefined =>
  isQuantisedDtype(dtype) ? PACKED_BITS[dtype.code] : undefined;

/** The encoding of a factor as a matrix: its rows are all axes but the last. */
export function factorEncoding(dtype: FactorDtype): StoredEncoding {
  if (!isQuantisedDtype(dtype)) return { kind: 'float', dtype };
  const { code, scaleGroup } = dtype;
  const bits = packedBits(dtype);
  if (bits !== undefined)
    return { kind: 'packed', bits, scaleDtype: 'BF16', groupSize: scaleGroup, zeroRows: 0, reordered: false };
  const data = code === 'int8' ? 'I8' : 'F8_E4M3';
  return { kind: 'codes', dtype: data, scaleDtype: 'BF16', blockRows: 1, blockCols: scaleGroup };
}

/** A tensor that holds a factor, or a part of one: its codes or its scales. */
export interface FactorPart {
  /** Follows the factor's name in the tensor's name. */
  readonly suffix: '' | '_packed' | '_scale';
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: number;
}

/** The tensors that hold a factor: its numbers first, then their scales if it is quantised. */
export function factorParts(dtype: FactorDtype, shape: readonly number[]): FactorPart[] {
  const count = (sizes: readonly number[]): number => sizes.reduce((a, b) => a * b, 1);
  if (!isQuantisedDtype(dtype)) return [{ suffix: '', dtype, shape, bytes: count(shape) * floatBytes(dtype) }];
  const outer = shape.slice(0, -1);
  const cols = shape.at(-1) as number;
  const bits = packedBits(dtype);
  const words = bits === undefined ? [] : [...outer, wordsOf(cols, bits)];
  const scales = [...outer, Math.ceil(cols / dtype.scaleGroup)];
  return [
    bits === undefined
      ? { suffix: '', dtype: dtype.code === 'int8' ? 'I8' : 'F8_E4M3', shape, bytes: count(shape) }
      : { suffix: '_packed', dtype: 'I32', shape: words, bytes: 4 * count(words) },
    { suffix: '_scale', dtype: 'BF16', shape: scales, bytes: 2 * count(scales) },
  ];
}

/**
 * The range of columns that rows of so many words can have. Rows need not fill their last word, so it can be several numbers.
 */
export const columnsOf = (words: number, bits: number): { least: number; most: number } => ({
  least: Math.floor(((words - 1) * 32) / bits) + 1,
  most: Math.floor((words * 32) / bits),
});
