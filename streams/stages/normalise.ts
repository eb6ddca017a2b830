/**
 * The normalise stage: the weights of a layer and projection are divided by their standard deviation σ. σ is that of all
 * experts, even if these are cut into several groups (`train_group.py` of the reference). Measuring σ and finding weights that
 * cannot be fitted needs decoded weights, so both happen while a fit decodes its weights.
 */
import { setImmediate } from 'node:timers/promises';
import { allFinite, encodeFloats } from '../../src/checkpoint/codec.js';
import type { FloatDtype } from '../../src/checkpoint/dtype.js';
import {
  asFactorised,
  decodeMatrix,
  decodePart,
  type MatrixFormat,
  readMatrix,
  type StoredMatrix,
} from '../../src/checkpoint/stored-matrix.js';
import { type GroupPlan, groupLabel, projectionKey } from '../../src/conversion/group-plan.js';
import { DegenerateGroupError, NonFiniteWeightError, OverflowError } from '../../src/errors.js';
import { addMoments, deviation, type Moments, measureMoments, NO_MOMENTS } from '../../src/linalg/moments.js';
import type { Targets } from '../../src/methods/method.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { ExpertGroup, NormalisedGroup } from '../records.js';

/** Options of `normalise`. */
export interface NormaliseOptions {
  /** All groups of the run, including those that were finished earlier. */
  readonly groups: readonly GroupPlan[];
  /** The groups that pass through the stage. */
  readonly coming: ReadonlySet<GroupPlan>;
  readonly reader: RangeReader;
  /**
   * If true, the groups of a layer and projection wait here until all have arrived. If false, they are read once for σ and
   * again for their fits.
   */
  readonly holdParts: boolean;
  /** Whether the run writes weights (not factors). Then every weight must fit the output dtype. */
  readonly writesWeights: boolean;
}

/**
 * Finds σ for groups that are parts of a layer and projection. A group that holds all experts passes at once with σ undefined,
 * because its job measures σ. Throws `NonFiniteWeightError`, `OverflowError` and `DegenerateGroupError`.
 */
export async function* normalise(
  groups: AsyncIterable<ExpertGroup>,
  { groups: all, coming, reader, holdParts, writesWeights }: NormaliseOptions,
): AsyncGenerator<NormalisedGroup> {
  const layers = new Map<
    string,
    { readonly parts: readonly GroupPlan[]; readonly waiting: ExpertGroup[]; sigma?: number }
  >();
  for await (const it of groups) {
    if (it.group.groups === 1) {
      yield { ...it, sigma: undefined };
      continue;
    }
    const key = projectionKey(it.group);
    const parts = partsOf(all, it.group);
    const known = layers.get(key) ?? { parts, waiting: [] };
    layers.set(key, known);
    if (!holdParts || parts.some((part) => !coming.has(part))) {
      known.sigma ??= await sigmaOfParts(parts, (part) => measureStored(part, reader, writesWeights));
      yield { ...it, sigma: known.sigma };
      continue;
    }
    known.waiting.push(it);
    if (known.waiting.length < parts.length) continue;
    const held = new Map(known.waiting.map((part) => [part.group, part.experts] as const));
    const sigma = await sigmaOfParts(parts, (part) =>
      measureGroup(part, (expert) => (held.get(part) as ExpertGroup['experts'])[expert] as Uint8Array, writesWeights),
    );
    layers.delete(key);
    for (const part of known.waiting) yield { ...part, sigma };
  }
}

async function sigmaOfParts(
  parts: readonly GroupPlan[],
  measure: (part: GroupPlan) => Promise<Moments>,
): Promise<number> {
  let moments = NO_MOMENTS;
  for (const part of parts) {
    const own = await measure(part);
    sigmaOf(own, groupLabel(part));
    moments = addMoments(moments, own);
  }
  return sigmaOf(moments, groupLabel(parts[0] as GroupPlan));
}

/**
 * Returns σ of a group's layer and projection, whose groups are found in `groups`. Reads all of them, holding one expert in
 * memory. Throws `NonFiniteWeightError` and `DegenerateGroupError`.
 */
export async function sigmaIn(groups: readonly GroupPlan[], group: GroupPlan, reader: RangeReader): Promise<number> {
  return sigmaOfParts(partsOf(groups, group), (part) => measureStored(part, reader, false));
}

/** The groups of a group's layer and projection. */
const partsOf = (groups: readonly GroupPlan[], { layer, projection }: GroupPlan): readonly GroupPlan[] =>
  groups.filter((it) => it.layer === layer && it.projection === projection);

/** Throws `DegenerateGroupError` if all weights are equal. */
function sigmaOf(moments: Moments, label: string): number {
  const sigma = deviation(moments);
  if (!(sigma > 0)) throw new DegenerateGroupError(label, moments.min);
  return sigma;
}

/** Reads a group's weights and returns their moments, holding one expert in memory. Throws as `ExpertMeasure.finish` does. */
function measureStored(group: GroupPlan, reader: RangeReader, writesWeights: boolean): Promise<Moments> {
  const { experts } = group;
  return measureGroup(group, (expert) => readMatrix(reader, experts[expert] as StoredMatrix), writesWeights);
}

async function measureGroup(
  group: GroupPlan,
  bytesOf: (expert: number) => Uint8Array | Promise<Uint8Array>,
  writesWeights: boolean,
): Promise<Moments> {
  let moments = NO_MOMENTS;
  for (const expert of group.experts.keys())
    moments = await measureExpert(moments, group, expert, await bytesOf(expert), writesWeights);
  return moments;
}

/** Decodes and measures some rows at a time. Between slices, other work can use the thread. */
async function measureExpert(
  before: Moments,
  { experts, dtype }: GroupPlan,
  expert: number,
  bytes: Uint8Array,
  writesWeights: boolean,
): Promise<Moments> {
  const matrix = experts[expert] as StoredMatrix;
  const { rows, cols, name, data } = matrix;
  const values = new Float32Array(rowsAtOnce(rows, cols) * cols);
  const measure = new ExpertMeasure(before);
  for (const { first, count } of slices(rows, cols)) {
    const part = values.subarray(0, count * cols);
    decodePart(matrix, bytes, { first, count }, part);
    measure.add(part);
    await setImmediate();
  }
  return measure.finish({ name, file: data.file }, writesWeights ? dtype : undefined);
}

/** Weights that are decoded and measured at once. This takes some milliseconds and about fills a core's cache. */
const SLICE = 2 ** 20;

const rowsAtOnce = (rows: number, cols: number): number => Math.min(rows, Math.max(1, Math.floor(SLICE / cols)));

/**
 * The slices of rows in which a matrix is measured. The last bits of the sums depend on the slices, so all measuring uses
 * these.
 */
function* slices(rows: number, cols: number): Generator<{ first: number; count: number }> {
  const most = rowsAtOnce(rows, cols);
  for (let first = 0; first < rows; first += most) yield { first, count: Math.min(most, rows - first) };
}

/** A tensor and its file, as error messages name them. */
export interface TensorLabel {
  readonly name: string;
  readonly file: string;
}

/** Adds an expert's weights, slice by slice, to the moments of the experts before it. */
class ExpertMeasure {
  private nonFinite = 0;
  private least = 0;
  private most = 0;

  constructor(private moments: Moments) {}

  add(part: Float32Array): void {
    const own = measureMoments(part);
    this.nonFinite += own.nonFinite;
    this.least = Math.min(this.least, own.min);
    this.most = Math.max(this.most, own.max);
    this.moments = addMoments(this.moments, own);
  }

  /**
   * Returns the moments. Throws `NonFiniteWeightError`, and `OverflowError` if a weight is too large for `dtype`. `dtype` is
   * undefined when factors are written, because it is not known yet whether factors will overflow.
   */
  finish({ name, file }: TensorLabel, dtype: FloatDtype | undefined): Moments {
    if (this.nonFinite) throw new NonFiniteWeightError(name, file, this.nonFinite);
    if (dtype && !allFinite(dtype, encodeFloats(dtype, Float32Array.of(this.least, this.most))))
      throw new OverflowError(name, dtype);
    return this.moments;
  }
}

/** The weights of a group, as a job receives them. */
export interface JobWeights {
  /** The format of each expert. All have the same shape. */
  readonly formats: readonly MatrixFormat[];
  readonly experts: readonly Uint8Array[];
  readonly labels: readonly TensorLabel[];
  /** If undefined, σ is measured from these weights. */
  readonly sigma: number | undefined;
  /** The dtype of written weights; undefined if factors are written. */
  readonly writtenDtype: FloatDtype | undefined;
  /** Names the group in errors. */
  readonly label: string;
}

/**
 * Decodes a group for a fit and divides it by σ. With `hold`, each expert is decoded once and kept until the fit has a copy of
 * its own and calls `forget`. Without, it is decoded each time it is read. Throws `NonFiniteWeightError`, `OverflowError` and
 * `DegenerateGroupError` if σ has to be measured.
 */
export function normaliseForFit(weights: JobWeights, hold: boolean): Targets & { readonly sigma: number } {
  const { formats, experts, labels, writtenDtype, label } = weights;
  const held = new Map<number, Float32Array>();
  const shape = formats[0] as MatrixFormat;
  const size = shape.rows * shape.cols;
  let { sigma } = weights;
  if (sigma === undefined || hold) {
    const scratch = new Float32Array(size);
    let moments = NO_MOMENTS;
    for (const [expert, bytes] of experts.entries()) {
      const values = hold && !shape.transposed ? new Float32Array(size) : scratch;
      decodeMatrix({ ...(formats[expert] as MatrixFormat), transposed: false }, bytes, values);
      if (sigma === undefined) {
        const measure = new ExpertMeasure(moments);
        for (const { first, count } of slices(shape.rows, shape.cols))
          measure.add(values.subarray(first * shape.cols, (first + count) * shape.cols));
        moments = measure.finish(labels[expert] as TensorLabel, writtenDtype);
      }
      if (hold) held.set(expert, asFactorised(shape, values));
    }
    sigma ??= sigmaOf(moments, label);
  }
  const scale = sigma;
  for (const values of held.values()) divide(values, scale);
  return {
    sigma: scale,
    read(expert, target) {
      const known = held.get(expert);
      if (known) {
        target.set(known);
        return;
      }
      decodeMatrix(formats[expert] as MatrixFormat, experts[expert] as Uint8Array, target);
      divide(target, scale);
    },
    forget: (expert) => void held.delete(expert),
  };
}

/** Divides all values by σ, in place. */
export function divide(values: Float32Array, sigma: number): void {
  for (let i = 0; i < values.length; i++) values[i] = (values[i] as number) / sigma;
}
