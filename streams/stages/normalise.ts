/**
 * Normalising: the weights of a layer and projection are divided by their standard deviation σ, that of all experts also
 * where they are cut into groups (`train_group.py` of the reference). σ and weights that no fit can start from are found by
 * decoding, so this goes along with the decoding that a fit needs anyway.
 */
import { setImmediate } from 'node:timers/promises';
import { allFinite, encodeFloats } from '../../src/checkpoint/codec.js';
import type { FloatDtype } from '../../src/checkpoint/dtype.js';
import { decodeRows, storedBytes } from '../../src/checkpoint/encoding.js';
import { asFactorised, decodeMatrix, type MatrixFormat, readMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type GroupPlan, groupLabel } from '../../src/conversion/group-plan.js';
import { DegenerateGroupError, NonFiniteWeightError, OverflowError } from '../../src/errors.js';
import { addMoments, deviation, type Moments, measureMoments, NO_MOMENTS } from '../../src/linalg/moments.js';
import type { Targets } from '../../src/methods/method.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { ExpertGroup, NormalisedGroup } from '../records.js';

export interface NormaliseOptions {
  /** Every group of the run: the parts of a layer and projection are found among them. */
  readonly groups: readonly GroupPlan[];
  /** Those that come through the stage. */
  readonly coming: ReadonlySet<GroupPlan>;
  readonly reader: RangeReader;
  /** Parts wait here until all are there; otherwise all are read once for σ and once more for their fits. */
  readonly holdParts: boolean;
  /** Whether weights are written, so that they must fit the output dtype. */
  readonly writesWeights: boolean;
}

/**
 * Settles σ of groups that are parts of a layer and projection. A group that is all of these passes at once: its job measures
 * it. Throws `NonFiniteWeightError`, `OverflowError` and `DegenerateGroupError`.
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
    const { layer, projection, groups: count } = it.group;
    if (count === 1) {
      yield { ...it, sigma: undefined };
      continue;
    }
    const key = `${layer} ${projection}`;
    const parts = all.filter((part) => part.layer === layer && part.projection === projection);
    const known = layers.get(key) ?? { parts, waiting: [] };
    layers.set(key, known);
    if (!holdParts || parts.some((part) => !coming.has(part))) {
      known.sigma ??= await sigmaOfParts(parts, (part) => measureStored(part, reader, writesWeights));
      yield { ...it, sigma: known.sigma };
      continue;
    }
    known.waiting.push(it);
    if (known.waiting.length < parts.length) continue;
    const held = new Map(known.waiting.map((part) => [part.group, part] as const));
    const sigma = await sigmaOfParts(parts, (part) => measureGroup(held.get(part) as ExpertGroup, writesWeights));
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

/** σ of a group: that of its layer and projection among `groups`. Reads these, in memory for one expert at a time. */
export async function sigmaIn(groups: readonly GroupPlan[], group: GroupPlan, reader: RangeReader): Promise<number> {
  const parts = groups.filter(({ layer, projection }) => layer === group.layer && projection === group.projection);
  return sigmaOfParts(parts, (part) => measureStored(part, reader, false));
}

/** Throws `DegenerateGroupError` where all weights are the same. */
function sigmaOf(moments: Moments, label: string): number {
  const sigma = deviation(moments);
  if (!(sigma > 0)) throw new DegenerateGroupError(label, moments.min);
  return sigma;
}

/** The moments of a group's weights, in memory for one expert at a time. Throws what `ExpertMeasure` does. */
async function measureStored(group: GroupPlan, reader: RangeReader, writesWeights: boolean): Promise<Moments> {
  let moments = NO_MOMENTS;
  for (const [expert, matrix] of group.experts.entries())
    moments = await measureExpert(moments, group, expert, await readMatrix(reader, matrix), writesWeights);
  return moments;
}

async function measureGroup({ group, experts }: ExpertGroup, writesWeights: boolean): Promise<Moments> {
  let moments = NO_MOMENTS;
  for (const [expert, bytes] of experts.entries())
    moments = await measureExpert(moments, group, expert, bytes, writesWeights);
  return moments;
}

/** Decodes some rows at a time, in little memory, and lets others have the thread in between. */
async function measureExpert(
  before: Moments,
  { format, experts, dtype }: GroupPlan,
  expert: number,
  bytes: Uint8Array,
  writesWeights: boolean,
): Promise<Moments> {
  const { encoding, rows, cols } = format;
  const { data: size } = storedBytes(encoding, rows, cols);
  const rowBytes = size / rows;
  const values = new Float32Array(rowsAtOnce(rows, cols) * cols);
  const measure = new ExpertMeasure(before);
  for (const { first, count } of slices(rows, cols)) {
    const part = values.subarray(0, count * cols);
    const data = bytes.subarray(first * rowBytes, (first + count) * rowBytes);
    decodeRows(encoding, cols, { first, count }, data, bytes.subarray(size), part);
    measure.add(part);
    await setImmediate();
  }
  const { name, data } = experts[expert] as GroupPlan['experts'][number];
  return measure.finish({ name, file: data.file }, writesWeights ? dtype : undefined);
}

/** Weights that are decoded and measured at once: some milliseconds, and about what stays in a core's cache. */
const SLICE = 2 ** 20;

const rowsAtOnce = (rows: number, cols: number): number => Math.min(rows, Math.max(1, Math.floor(SLICE / cols)));

/** The slices in which a matrix is measured. Sums depend on them in their last bits, so all that measure use these. */
function* slices(rows: number, cols: number): Generator<{ first: number; count: number }> {
  const most = rowsAtOnce(rows, cols);
  for (let first = 0; first < rows; first += most) yield { first, count: Math.min(most, rows - first) };
}

/** For people: a tensor and the file it is in. */
export interface TensorLabel {
  readonly name: string;
  readonly file: string;
}

/** Adds an expert's weights, slice by slice, to the moments of those before it. */
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
   * Throws `NonFiniteWeightError`; and, where weights are to be written in `dtype` and one is too large for it, `OverflowError`.
   * Whether factors overflow is not known yet.
   */
  finish({ name, file }: TensorLabel, dtype: FloatDtype | undefined): Moments {
    if (this.nonFinite) throw new NonFiniteWeightError(name, file, this.nonFinite);
    if (dtype && !allFinite(dtype, encodeFloats(dtype, Float32Array.of(this.least, this.most))))
      throw new OverflowError(name, dtype);
    return this.moments;
  }
}

/** A group as a job has it. */
export interface JobWeights {
  readonly format: MatrixFormat;
  readonly experts: readonly Uint8Array[];
  readonly labels: readonly TensorLabel[];
  /** Undefined: that of these weights. */
  readonly sigma: number | undefined;
  /** Of weights that are to be written; undefined where factors are. */
  readonly writtenDtype: FloatDtype | undefined;
  /** Names the group in errors. */
  readonly label: string;
}

/**
 * Decodes a group for a fit and normalises it. With `hold` each expert is decoded once for the fit and kept until the fit has
 * its own copy (`forget`); otherwise it is decoded whenever it is read.
 */
export function normaliseForFit(weights: JobWeights, hold: boolean): Targets & { readonly sigma: number } {
  const { format, experts, labels, writtenDtype, label } = weights;
  const held = new Map<number, Float32Array>();
  const size = format.rows * format.cols;
  let { sigma } = weights;
  if (sigma === undefined || hold) {
    const scratch = new Float32Array(size);
    let moments = NO_MOMENTS;
    for (const [expert, bytes] of experts.entries()) {
      const values = hold && !format.transposed ? new Float32Array(size) : scratch;
      decodeMatrix({ ...format, transposed: false }, bytes, values);
      if (sigma === undefined) {
        const measure = new ExpertMeasure(moments);
        for (const { first, count } of slices(format.rows, format.cols))
          measure.add(values.subarray(first * format.cols, (first + count) * format.cols));
        moments = measure.finish(labels[expert] as TensorLabel, writtenDtype);
      }
      if (hold) held.set(expert, asFactorised(format, values));
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
      decodeMatrix(format, experts[expert] as Uint8Array, target);
      divide(target, scale);
    },
    forget: (expert) => void held.delete(expert),
  };
}

export function divide(values: Float32Array, sigma: number): void {
  for (let i = 0; i < values.length; i++) values[i] = (values[i] as number) / sigma;
}
