/**
 * The weigh stage: each group gets the metric of its fit, from a calibration record and the layer's dense weights. It reads the tokens
 * of one expert after another, some at a time, and a thread of its own computes with them.
 */

import { type Measured, neededWeights, tokensAtOnce } from '../../src/calibration/expert-statistics.js';
import { type ExpertTokens, tokensOfExperts } from '../../src/calibration/expert-tokens.js';
import { expertNumbers } from '../../src/calibration/group-metric.js';
import type { CalibrationRecord, LayerRecord } from '../../src/calibration/record.js';
import { shrinkage } from '../../src/calibration/shrinkage.js';
import { allFinite } from '../../src/checkpoint/codec.js';
import { readMatrix, type StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type GroupPlan, groupLabel } from '../../src/conversion/group-plan.js';
import { jobMetric, type MetricPlan } from '../../src/conversion/metric-plan.js';
import { NonFiniteMetricError, RecordShapeError } from '../../src/errors.js';
import type { Activation } from '../../src/methods/mobe/problem.js';
import type { ExpertLayer, Projection } from '../../src/models/family.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { StoredExpert } from '../compute/compute.js';
import type { ComputeThread } from '../compute/compute-thread.js';
import type { NormalisedGroup, WeighedGroup, WeighedMetric } from '../records.js';

/** Options of `weigh`. */
export interface WeighOptions {
  readonly record: CalibrationRecord;
  readonly metric: MetricPlan;
  /** The groups that pass through the stage. A layer's record is released after the last of them. */
  readonly groups: readonly GroupPlan[];
  /** The layers with the dense weights. */
  readonly layers: readonly ExpertLayer[];
  readonly reader: RangeReader;
  readonly thread: Pick<ComputeThread, 'call'>;
  readonly activation: Activation;
  readonly seed: number;
}

/** An expert that no token reached is measured with at most this many of the layer's tokens, in units of their width. */
const SAMPLE = 5;

/** The weights of rows, mean 1, stay between these. */
const LEAST_ROW = 0.05;
const MOST_ROW = 20;

/** Throws a `RecordError` if the record does not fit the group, or has numbers that are not finite. */
export async function* weigh(
  groups: AsyncIterable<NormalisedGroup>,
  options: WeighOptions,
): AsyncGenerator<WeighedGroup> {
  const { record } = options;
  const coming = options.groups.map(({ layer }) => layer);
  let open: OpenLayer | undefined;
  for await (const it of groups) {
    const { group } = it;
    const described = jobMetric(options.metric, group);
    if (!described) yield it;
    else {
      if (open?.layer.layer !== group.layer) open = await openLayer(record, group, options.layers);
      yield { ...it, metric: { ...described, ...(await measure(it, open, described.form, options)) } };
    }
    coming.splice(coming.indexOf(group.layer), 1);
    if (!coming.includes(group.layer)) {
      if (open?.layer.layer === group.layer) open = undefined;
      await record.release(group.layer);
    }
  }
}

interface OpenLayer {
  readonly layer: LayerRecord;
  readonly tokens: readonly ExpertTokens[];
  readonly weights: ExpertLayer['experts'];
}

async function openLayer(
  record: CalibrationRecord,
  { layer: number, problem }: GroupPlan,
  layers: readonly ExpertLayer[],
): Promise<OpenLayer> {
  const layer = await record.layer(number);
  const { experts: weights } = layers.find((it) => it.layer === number) as ExpertLayer;
  const count = weights.up_proj.length;
  if (layer.width !== problem.cols)
    throw new RecordShapeError(record.name, number, `has inputs of width ${layer.width}, not ${problem.cols}`);
  if (layer.experts.some((expert) => expert < 0 || expert >= count))
    throw new RecordShapeError(record.name, number, `has tokens of experts above ${count - 1}`);
  return { layer, weights, tokens: tokensOfExperts(layer, weights.up_proj.length) };
}

async function measure(
  { group, experts }: NormalisedGroup,
  { layer, tokens: all, weights }: OpenLayer,
  form: WeighedMetric['form'],
  { reader, thread, record, activation, seed }: WeighOptions,
): Promise<Pick<WeighedMetric, 'experts' | 'facts'>> {
  const { projection, problem } = group;
  const { rows, cols } = problem;
  const first = group.group * group.experts.length;
  const needed = form.rows ? neededWeights(projection, weights.gate_proj.length > 0) : [];
  await thread.call('openStatistics', [{ projection, rows, cols, form, activation, seed }]);
  const measured: Measured[] = [];
  const shares: number[] = [];
  const unreached: number[] = [];
  for (const [own, bytes] of experts.entries()) {
    const expert = first + own;
    const found = all[expert] as ExpertTokens;
    if (found.tokens.length === 0) unreached.push(expert);
    const tokens = found.tokens.length > 0 ? found : sampleOf(layer);
    const stored: Record<string, { format: StoredMatrix & { transposed: false }; bytes: Uint8Array }> = {};
    for (const name of needed) {
      const matrix = weights[`${name}_proj`][expert] as StoredMatrix;
      const known = `${name}_proj` === (projection satisfies Projection) ? bytes : await readMatrix(reader, matrix);
      stored[name] = { format: { ...matrix, transposed: false }, bytes: known };
    }
    const share = shrinkage(found.tokens.length, cols);
    shares.push(share);
    const count = tokens.tokens.length;
    await thread.call('beginExpert', [{ expert, tokens: count, shrinkage: share }, stored as StoredExpert]);
    const most = tokensAtOnce(cols);
    for (let at = 0; at < count; at += most) {
      const chunk = tokens.tokens.subarray(at, at + most);
      const inputs = new Float32Array(chunk.length * cols);
      await layer.readInputs(chunk, inputs);
      const importance = tokens.importance.slice(at, at + most);
      await thread.call('addTokens', [{ inputs, importance }], [inputs.buffer]);
    }
    const result = (await thread.call('finishExpert', [])) as Measured;
    if (!isSound(result)) throw new NonFiniteMetricError(record.name, groupLabel(group), expert);
    measured.push(result);
  }
  await thread.call('openStatistics', [undefined]);
  if (form.rows?.form === 'diagonal')
    writeRows(
      measured,
      unreached.map((expert) => expert - first),
      expertNumbers(problem, form).rows,
    );
  const counts = all.slice(first, first + experts.length).map(({ tokens }) => tokens.length);
  return {
    experts: measured.map(({ matrices }) => matrices),
    facts: { tokens: range(counts), shrinkage: range(shares), ...(unreached.length && { unreached }) },
  };
}

/** Tokens of the whole layer, evenly spaced, with equal weights. */
function sampleOf({ tokens: count, width, scale }: LayerRecord): ExpertTokens {
  const size = Math.min(count, SAMPLE * width);
  const tokens = Int32Array.from({ length: size }, (_, i) => Math.floor((i * count) / size));
  const importance = Float32Array.from(tokens, (token) => scale[token] as number);
  return { tokens, importance, weights: new Float32Array(size).fill(1) };
}

/** Writes the diagonals of the rows. An expert that no token reached has mean 1, because its scale cannot be compared. */
function writeRows(measured: readonly Measured[], unreached: readonly number[], rows: number): void {
  const weights = measured.map(({ neurons }) => Float64Array.from(neurons as Float64Array, Math.sqrt));
  const mean = (of: readonly Float64Array[]): number => {
    const total = of.reduce((sum, own) => sum + own.reduce((a, b) => a + b, 0), 0);
    return total > 0 ? total / (of.length * rows) : 1;
  };
  const reached = mean(weights.filter((_, expert) => !unreached.includes(expert)));
  for (const [expert, own] of weights.entries()) {
    const scale = unreached.includes(expert) ? mean([own]) : reached;
    const target = new Float32Array((measured[expert] as Measured).matrices.buffer, 0, rows);
    for (const [k, weight] of own.entries()) target[k] = Math.min(MOST_ROW, Math.max(LEAST_ROW, weight / scale));
  }
}

/** Whether all numbers of a metric are finite. */
const isSound = ({ matrices, neurons }: Measured): boolean =>
  allFinite('F32', matrices) && (neurons ?? new Float64Array(0)).every(Number.isFinite);

const range = (values: readonly number[]): [number, number] => [Math.min(...values), Math.max(...values)];
