/** Encodes a method's factors as they are stored, and decodes them. A quantised factor has several parts: its codes and its scales. */
import { z } from 'zod';
import { encodeFinite, floatsOf } from '../checkpoint/codec.js';
import type { FloatDtype } from '../checkpoint/dtype.js';
import { decodeRows } from '../checkpoint/encoding.js';
import {
  dtypeName,
  type FactorDtype,
  type FactorPart,
  factorDtypeSchema,
  factorEncoding,
  factorParts,
  isQuantisedDtype,
} from '../checkpoint/factor-dtype.js';
import { roundingBytes } from '../linalg/round-with-feedback.js';
import { encodeInMetric } from './encode-in-metric.js';
import type { FactorShape, Factors, FitMemory, MethodProblem } from './method.js';

/** The dtypes of the factors that can be quantised (`FactorShape.coded`). */
export interface StoredDtypes {
  /** The dtype of the factors that each expert has to itself. */
  readonly own: FactorDtype;
  /** The dtype of the factors that experts share. */
  readonly shared: FactorDtype;
}

/** The schema of `StoredDtypes`. */
export const storedDtypesSchema = z.strictObject({ own: factorDtypeSchema, shared: factorDtypeSchema }).readonly();

/** Factors that all are floats of one dtype. */
export const plainDtypes = (dtype: FloatDtype): StoredDtypes => ({ own: dtype, shared: dtype });

/** Whether any factor is quantised. */
export const hasCodes = ({ own, shared }: StoredDtypes): boolean => isQuantisedDtype(own) || isQuantisedDtype(shared);

/** The facts from which the tensors of a group's factors follow. */
export interface FactorForm extends MethodProblem {
  /** The dtype of the factors that are never quantised. */
  readonly dtype: FloatDtype;
  readonly stored: StoredDtypes;
}

/** The memory of a fit whose factors are stored, with that in which the factor of one expert is rounded. */
export function withRounding(fit: FitMemory, { method, problem, stored }: Omit<FactorForm, 'dtype'>): FitMemory {
  const scaled = method.stores(problem).byExpert.find(({ name, coded }) => coded && name === method.scaled);
  if (!scaled || !isQuantisedDtype(stored.own)) return fit;
  const [rows = 1, cols = 1] = scaled.shape;
  return { ...fit, batch: fit.batch + roundingBytes(rows, cols) };
}

/** A factor with the dtype in which it is stored. */
export interface StoredFactor extends FactorShape {
  readonly dtype: FactorDtype;
}

/** The factors of a group, with their dtypes. */
export function storedFactors({ method, problem, dtype, stored }: FactorForm): {
  readonly shared: readonly StoredFactor[];
  readonly byExpert: readonly StoredFactor[];
} {
  const { shared, byExpert } = method.stores(problem);
  const typed = (factors: readonly FactorShape[], coded: FactorDtype): StoredFactor[] =>
    factors.map((factor) => ({ ...factor, dtype: factor.coded ? coded : dtype }));
  return { shared: typed(shared, stored.shared), byExpert: typed(byExpert, stored.own) };
}

/** A part of a factor. Records of factors as stored have their bytes by `key`. */
export interface NamedPart extends FactorPart {
  readonly factor: string;
  /** The factor's name and the part's suffix. A float factor has one part, whose key is the factor's name. */
  readonly key: string;
  /** The dtype of the factor. */
  readonly factorDtype: FactorDtype;
  /** The numbers of the factor, if the part holds them; 0 for scales. */
  readonly parameters: number;
}

/** The parts of factors, in the order in which they are stored. */
export const partsOf = (factors: readonly StoredFactor[]): NamedPart[] =>
  factors.flatMap(({ name, shape, dtype }) =>
    factorParts(dtype, shape).map((part, i) => ({
      ...part,
      factor: name,
      key: name + part.suffix,
      factorDtype: dtype,
      parameters: i === 0 ? shape.reduce((a, b) => a * b, 1) : 0,
    })),
  );

/** Factors as stored: the bytes of each part, by its key. */
export type StoredParts = Readonly<Record<string, Uint8Array>>;

/** A factor as a matrix: its rows are all axes but the last. */
const matrixOf = ({ shape, dtype }: StoredFactor) => {
  const cols = shape.at(-1) ?? 1;
  return { encoding: factorEncoding(dtype), rows: shape.slice(0, -1).reduce((a, b) => a * b, 1), cols };
};

/**
 * Encodes a factor. Throws an `OverflowError`, which names `label`, if a value is too large for the dtype.
 * @param gram the metric G, (cols, cols), in which the error of a quantised factor counts: tr(E·G·Eᵀ). Without, all errors count alike
 */
export function encodeFactor(
  factor: StoredFactor,
  values: Float32Array,
  label: string,
  gram?: Float32Array,
): Record<string, Uint8Array<ArrayBuffer>> {
  if (!isQuantisedDtype(factor.dtype)) return { [factor.name]: encodeFinite(factor.dtype, values, label) };
  const { encoding, rows, cols } = matrixOf(factor);
  const bytes = encodeInMetric(encoding, { rows, cols }, values, label, gram && { gram, signedScales: true });
  const [data, scale] = partsOf([factor]) as [NamedPart, NamedPart];
  return { [data.key]: bytes.slice(0, data.bytes), [scale.key]: bytes.slice(data.bytes) };
}

/**
 * Encodes factors.
 * @param label names a factor in errors
 * @param grams the metrics of quantised factors, by name
 */
export const encodeFactors = (
  factors: readonly StoredFactor[],
  values: Factors,
  label: (factor: string) => string,
  grams: Readonly<Record<string, Float32Array>> = {},
): Record<string, Uint8Array<ArrayBuffer>> =>
  Object.assign(
    {},
    ...factors.map((it) => encodeFactor(it, values[it.name] as Float32Array, label(it.name), grams[it.name])),
  );

/** Decodes factors. */
export function decodeFactors(factors: readonly StoredFactor[], parts: StoredParts): Factors {
  return Object.fromEntries(factors.map((factor) => [factor.name, decodeFactor(factor, parts)]));
}

function decodeFactor(factor: StoredFactor, parts: StoredParts): Float32Array {
  const held = partsOf([factor]).map(({ key }) => parts[key] as Uint8Array) as [Uint8Array, Uint8Array];
  if (!isQuantisedDtype(factor.dtype)) return floatsOf(factor.dtype, held[0]);
  const { encoding, rows, cols } = matrixOf(factor);
  const values = new Float32Array(rows * cols);
  decodeRows(encoding, cols, { first: 0, count: rows }, held[0], held[1], values);
  return values;
}

/** The dtypes in short: "int5+int6" for A in int5 and its bases in int6; "int8" if they are alike. */
export const shortDtypes = ({ own, shared }: StoredDtypes): string =>
  [...new Set([dtypeName(own), dtypeName(shared)])].join('+');

/** The dtypes in words: "int5, their bases int6, with a scale for each 64 columns"; "bfloat16" if they are alike. */
export function describeDtypes({ own, shared }: StoredDtypes): string {
  const names =
    dtypeName(own) === dtypeName(shared) ? dtypeName(own) : `${dtypeName(own)}, their bases ${dtypeName(shared)}`;
  const [quantised] = [own, shared].filter(isQuantisedDtype);
  return quantised ? `${names}, with a scale for each ${quantised.scaleGroup} columns` : names;
}
