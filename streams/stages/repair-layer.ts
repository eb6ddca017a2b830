/** Fits the finished factors of a layer anew to the layer's calibration record, one expert at a time. */
import { type ExpertTokens, tokensOfExperts } from '../../src/calibration/expert-tokens.js';
import type { LayerRecord } from '../../src/calibration/record.js';
import { shrinkage } from '../../src/calibration/shrinkage.js';
import { sampleOf, tokenBatches } from '../../src/calibration/token-batches.js';
import { readMatrix, type StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import { groupPlaces } from '../../src/conversion/group-places.js';
import { type GroupPlan, groupKey, groupLabel, weightEncoding } from '../../src/conversion/group-plan.js';
import { factorisedShape } from '../../src/conversion/orientation.js';
import type { FittedGroupReport, MetricFacts, RepairedGroupReport } from '../../src/conversion/run-report.js';
import { holdsWeights } from '../../src/conversion/settings.js';
import { NonFiniteMetricError, RecordShapeError } from '../../src/errors.js';
import type { ExpertLayer, Projection } from '../../src/models/family.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { ComputeThread } from '../compute/compute-thread.js';
import { addErrors, NO_ERROR, relativeError, type SquaredError } from '../compute/squared-error.js';
import type { StoredWeights } from '../compute/stored-weights.js';
import type { OutputRecord } from '../records.js';
import { asLoaded, type FactoredGroup, readFactors } from './rebuild.js';

/** A group with the report of its fit. */
export interface ReportedGroup extends FactoredGroup {
  readonly report: FittedGroupReport;
}

/** A layer whose factors are finished. */
export interface LayerToRepair {
  /** The dense weights of the model. */
  readonly source: ExpertLayer;
  readonly factored: readonly ReportedGroup[];
  /** Whether down_proj is repaired. */
  readonly repairsDown: boolean;
  /** The group of the dense down_proj, if the output has a place for it. */
  readonly down?: GroupPlan | undefined;
}

/** The input of `repairLayer`. */
export interface LayerRepairTools {
  readonly plan: Pick<ConversionPlan, 'format' | 'separate'>;
  readonly reader: RangeReader;
  readonly record: LayerRecord;
  readonly thread: ComputeThread;
  /** The groups to write. Others of the layer were written by an interrupted run. */
  readonly missing: ReadonlySet<GroupPlan>;
}

/** Yields the repaired groups of a layer as chunks of output tensors, then their reports. */
export async function* repairLayer(
  { source, factored, repairsDown, down }: LayerToRepair,
  { plan, reader, record, thread, missing }: LayerRepairTools,
): AsyncGenerator<OutputRecord> {
  const started = performance.now();
  const { experts: matrices, layer: number } = source;
  const [first] = matrices.up_proj as [StoredMatrix];
  const count = matrices.up_proj.length;
  const shape = { rows: first.rows, cols: first.cols, gated: matrices.gate_proj.length > 0 };
  if (record.width !== first.cols)
    throw new RecordShapeError(record.name, number, `has inputs of width ${record.width}, not ${first.cols}`);
  const tokens = tokensOfExperts(record, count);
  const errors = new Map<GroupPlan, SquaredError>();
  const loaded = new Map<Projection, ReportedGroup>();

  for (const { group, shared } of factored) {
    const stored = await readFactors(shared, reader);
    if (missing.has(group))
      for (const { factor, tensor, offset } of groupPlaces(group, plan).shared)
        yield { tensor, offset, data: stored[factor] as Uint8Array };
  }

  const denseWeights = async (projection: Projection, expert: number): Promise<StoredWeights> => {
    const matrix = matrices[projection][expert] as StoredMatrix;
    const format = { ...factorisedShape(projection, matrix), encoding: matrix.encoding };
    return { format, bytes: await readMatrix(reader, matrix) };
  };
  /** The group of an expert, and its number in the group. */
  const groupOfExpert = (projection: Projection, expert: number) => {
    const own = factored.find(
      ({ group }) => group.projection === projection && Math.floor(expert / group.experts.length) === group.group,
    );
    return own && { own, index: expert % own.group.experts.length };
  };
  const load = async (own: ReportedGroup): Promise<void> => {
    const { projection } = own.group;
    if (loaded.get(projection) === own) return;
    loaded.set(projection, own);
    const shared = await readFactors(own.shared, reader);
    await thread.repair('load', projection, asLoaded(own.group, shared));
  };
  const chunks = function* (group: GroupPlan, index: number, tensors: Readonly<Record<string, Uint8Array>>) {
    if (!missing.has(group)) return;
    for (const { factor, tensor, offset, part } of groupPlaces(group, plan).experts[index] ?? [])
      yield { tensor, offset, data: tensors[factor] as Uint8Array, ...(part && { part }) };
  };
  const inMetric = new Map<GroupPlan, SquaredError>();
  const add = (to: Map<GroupPlan, SquaredError>, group: GroupPlan, error: SquaredError): void =>
    void to.set(group, addErrors(to.get(group) ?? NO_ERROR, error));

  const refit = async function* (projection: Projection, expert: number): AsyncGenerator<OutputRecord> {
    const found = groupOfExpert(projection, expert);
    const dense = await denseWeights(projection, expert);
    if (!found) {
      await thread.repair('keep', projection, dense);
      return;
    }
    const { own, index } = found;
    await load(own);
    const label = `${groupLabel(own.group)}, expert ${index}`;
    const written = holdsWeights(plan) ? weightEncoding(own.group, index) : 'factors';
    const { tensors, metric, ...error } = await thread.repair('fit', projection, index, dense, { label, written });
    add(errors, own.group, error);
    if (metric) add(inMetric, own.group, metric);
    yield* chunks(own.group, index, tensors);
  };

  for (let expert = 0; expert < count; expert++) {
    const own = tokens[expert] as ExpertTokens;
    const inputs = own.tokens.length ? own : sampleOf(record);
    const share = shrinkage(own.tokens.length, record.width);
    await thread.repair('begin', shape, { expert, tokens: inputs.tokens.length, shrinkage: share });
    for await (const batch of tokenBatches(record, inputs)) await thread.repair('count', batch);
    if (!(await thread.repair('measure'))) throw new NonFiniteMetricError(record.name, `layer ${number}`, expert);
    if (shape.gated) yield* refit('gate_proj', expert);
    yield* refit('up_proj', expert);
    if (repairsDown && own.tokens.length) {
      await thread.repair('compare', shape);
      for await (const batch of tokenBatches(record, own)) await thread.repair('activate', batch);
    }
    if (groupOfExpert('down_proj', expert)) yield* refit('down_proj', expert);
    else if (down) {
      const label = `layer ${number} down_proj, expert ${expert}`;
      const dense = await denseWeights('down_proj', expert);
      const { tensors, ...error } = await thread.repair('dense', dense, weightEncoding(down, expert), label);
      add(errors, down, error);
      yield* chunks(down, expert, tensors);
    }
  }
  await thread.repair('release');
  const seconds = (performance.now() - started) / 1000 / errors.size;
  for (const { group, report } of factored) {
    if (!missing.has(group)) continue;
    const error = errors.get(group) as SquaredError;
    const { experts, rows, cols } = group.problem;
    const { metric: _, seconds: __, ...fitted } = report;
    const weighed = inMetric.get(group);
    const finished: FittedGroupReport = {
      ...fitted,
      ...(weighed && {
        metric: { relativeError: relativeError(weighed), ...metricFacts(group, tokens, record.width) },
      }),
      relativeError: relativeError(error),
      mse: error.squaredError / (experts * rows * cols),
      seconds,
    };
    yield { finished };
  }
  if (down && missing.has(down)) {
    const repairedError = relativeError(errors.get(down) as SquaredError);
    yield { finished: { ...groupKey(down), seconds, repairedError } satisfies RepairedGroupReport };
  }
}

/** The tokens of a group's experts, and their shrinkage. */
function metricFacts({ group, experts }: GroupPlan, all: readonly ExpertTokens[], width: number): MetricFacts {
  const first = group * experts.length;
  const counts = all.slice(first, first + experts.length).map(({ tokens }) => tokens.length);
  const unreached = counts.flatMap((count, i) => (count === 0 ? [first + i] : []));
  const [least, most] = [Math.min(...counts), Math.max(...counts)];
  return {
    tokens: [least, most],
    shrinkage: [shrinkage(most, width), shrinkage(least, width)],
    ...(unreached.length && { unreached }),
  };
}
