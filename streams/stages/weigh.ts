/**
 * The weigh stage: each group gets the metric of its fit, from a calibration record and the layer's dense weights. It reads the tokens
 * of one expert after another, some at a time, and a thread of its own computes with them.
 */

import { type ExpertWeights, type Measured, neededWeights } from '../../src/calibration/expert-statistics.js';
import { type ExpertTokens, tokensOfExperts } from '../../src/calibration/expert-tokens.js';
import type { CalibrationRecord, LayerRecord } from '../../src/calibration/record.js';
import { shrinkage } from '../../src/calibration/shrinkage.js';
import { sampleOf, tokenBatches } from '../../src/calibration/token-batches.js';
import { allFinite } from '../../src/checkpoint/codec.js';
import { readMatrix, type StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type GroupPlan, groupLabel } from '../../src/conversion/group-plan.js';
import { jobMetric, measuredTogether } from '../../src/conversion/metric-plan.js';
import type { MetricPlan } from '../../src/conversion/metric-record.js';
import { NonFiniteMetricError, RecordShapeError } from '../../src/errors.js';
import type { Activation } from '../../src/methods/mobe/problem.js';
import type { ExpertLayer } from '../../src/models/family.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { ComputeThread } from '../compute/compute-thread.js';
import type { StoredWeights } from '../compute/stored-weights.js';
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

/** The weights of rows, mean 1, stay between these. */
const LEAST_ROW = 0.05;
const MOST_ROW = 20;

/** Throws a `RecordError` if the record does not fit a group, or has numbers that are not finite. */
export async function* weigh(
  groups: AsyncIterable<NormalisedGroup>,
  options: WeighOptions,
): AsyncGenerator<WeighedGroup> {
  const { record, metric: plan } = options;
  const coming = [...options.groups];
  /** Metrics that were made with another group's. */
  const ready = new Map<string, WeighedMetric>();
  let open: OpenLayer | undefined;
  for await (const it of groups) {
    const { group } = it;
    const label = groupLabel(group);
    if (!jobMetric(plan, group)) yield it;
    else {
      if (open?.layer.layer !== group.layer) open = await openLayer(record, group, options.layers);
      if (!ready.has(label)) {
        const together = measuredTogether(plan, group, coming);
        for (const [i, metric] of (await measure(together, open, options)).entries())
          ready.set(groupLabel(together[i] as GroupPlan), metric);
      }
      const metric = ready.get(label) as WeighedMetric;
      ready.delete(label);
      yield { ...it, metric };
    }
    coming.splice(
      coming.findIndex((other) => groupLabel(other) === label),
      1,
    );
    if (coming.some(({ layer }) => layer === group.layer)) continue;
    if (open?.layer.layer === group.layer) open = undefined;
    await record.release(group.layer);
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
  return { layer, weights, tokens: tokensOfExperts(layer, count) };
}

/** Makes the metrics of groups that have the same experts, in one pass over their tokens. */
async function measure(
  groups: readonly GroupPlan[],
  { layer, tokens: all, weights }: OpenLayer,
  { metric: plan, reader, thread, record, activation, seed }: WeighOptions,
): Promise<WeighedMetric[]> {
  const [group] = groups as [GroupPlan];
  const { experts: count, rows, cols } = group.problem;
  const first = group.group * count;
  const jobs = groups.map((it) => jobMetric(plan, it) as NonNullable<ReturnType<typeof jobMetric>>);
  const common = { rows, cols, activation, seed };
  await thread.call('openStatistics', [
    groups.map(({ projection }, i) => ({ projection, form: (jobs[i] as (typeof jobs)[0]).form, ...common })),
  ]);
  const hasGate = weights.gate_proj.length > 0;
  const needed = new Set(
    groups.flatMap(({ projection }, i) => (jobs[i]?.form.rows ? neededWeights(projection, hasGate) : [])),
  );
  const measured: Measured[][] = groups.map(() => []);
  const shares: number[] = [];
  const unreached: number[] = [];
  for (let expert = first; expert < first + count; expert++) {
    const found = all[expert] as ExpertTokens;
    if (found.tokens.length === 0) unreached.push(expert);
    const { tokens, importance } = found.tokens.length > 0 ? found : sampleOf(layer);
    const stored: Partial<Record<keyof ExpertWeights, StoredWeights>> = {};
    for (const name of needed) {
      const matrix = weights[`${name}_proj`][expert] as StoredMatrix;
      stored[name] = { format: { ...matrix, transposed: false }, bytes: await readMatrix(reader, matrix) };
    }
    const share = shrinkage(found.tokens.length, cols);
    shares.push(share);
    await thread.call('beginExpert', [{ expert, tokens: tokens.length, shrinkage: share }, stored]);
    for await (const batch of tokenBatches(layer, { tokens, importance }))
      await thread.call('addTokens', [batch], [batch.inputs.buffer]);
    for (const [i, result] of (await thread.call('finishExpert', [])).entries()) {
      if (!isSound(result)) throw new NonFiniteMetricError(record.name, groupLabel(groups[i] as GroupPlan), expert);
      measured[i]?.push(result);
    }
  }
  await thread.call('openStatistics', [[]]);
  const counts = all.slice(first, first + count).map(({ tokens }) => tokens.length);
  const facts = { tokens: range(counts), shrinkage: range(shares), ...(unreached.length && { unreached }) };
  const missing = new Set(unreached.map((expert) => expert - first));
  return measured.map((own, i) => {
    const job = jobs[i] as (typeof jobs)[0];
    if (job.form.rows?.form === 'diagonal') writeRows(own, missing, rows);
    return { ...job, experts: own.map(({ matrices }) => matrices), facts };
  });
}

/** Writes the diagonals of the rows. An expert that no token reached has mean 1, because its scale cannot be compared. */
function writeRows(measured: readonly Measured[], unreached: ReadonlySet<number>, rows: number): void {
  const weights = measured.map(({ neurons }) => (neurons as Float64Array).map(Math.sqrt));
  const mean = (of: readonly Float64Array[]): number => {
    const total = of.reduce((sum, own) => sum + own.reduce((a, b) => a + b, 0), 0);
    return total > 0 ? total / (of.length * rows) : 1;
  };
  const reached = mean(weights.filter((_, expert) => !unreached.has(expert)));
  for (const [expert, own] of weights.entries()) {
    const scale = unreached.has(expert) ? mean([own]) : reached;
    const target = new Float32Array((measured[expert] as Measured).matrices.buffer, 0, rows);
    for (const [k, weight] of own.entries()) target[k] = Math.min(MOST_ROW, Math.max(LEAST_ROW, weight / scale));
  }
}

/** Whether all numbers of a metric are finite. */
const isSound = ({ matrices, neurons }: Measured): boolean =>
  allFinite('F32', matrices) && (neurons ?? new Float64Array(0)).every(Number.isFinite);

const range = (values: readonly number[]): [number, number] => [Math.min(...values), Math.max(...values)];
