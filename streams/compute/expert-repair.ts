/**
 * Fits one expert after another anew to a calibration record: the factor A of each projection, and down_proj to the hidden
 * activations that the compressed gate and up give. It runs in a compute thread.
 */

import { createDownRepair, type DownRepair, type ExpertShape } from '../../src/calibration/down-repair.js';
import { ExpertStatistics, type MeasuredExpert, type TokenBatch } from '../../src/calibration/expert-statistics.js';
import { allFinite, encodeFinite, floatsOf } from '../../src/checkpoint/codec.js';
import type { StoredEncoding } from '../../src/checkpoint/encoding.js';
import { asFactorised, asStored } from '../../src/checkpoint/stored-matrix.js';
import type { Engine } from '../../src/engine/engine.js';
import { decodeFactors, storedFactors } from '../../src/methods/factor-storage.js';
import type { ExpertFactors, Metric, Reconstruction } from '../../src/methods/method.js';
import { createMetricNorm, type MetricNorm } from '../../src/methods/mobe/metric-norm.js';
import type { Projection } from '../../src/models/family.js';
import { type ExpertForm, encodeExpert, needsGram } from './encode-expert.js';
import { type SquaredError, squaredError } from './squared-error.js';
import { decodeAsStored, type LoadedFactors, loadedForm, type StoredWeights } from './stored-weights.js';
import { encodeWeights, sourceWeights } from './written-weights.js';

/** The output for an expert's projection: its factors by name, or its weights. */
export interface RepairedTensors extends SquaredError {
  /** The error of an expert's factors in its metric. */
  readonly metric?: SquaredError | undefined;
  readonly tensors: Readonly<Record<string, Uint8Array<ArrayBuffer>>>;
}

/** Names an expert in errors, and says in which form it is written. */
export interface RepairOutput {
  readonly label: string;
  /** The encoding of its weights, or its factors in their dtype. */
  readonly written: 'factors' | StoredEncoding;
}

interface LoadedGroup {
  readonly factors: LoadedFactors;
  readonly form: ExpertForm;
  readonly own: ExpertFactors;
  readonly norm: MetricNorm | undefined;
  readonly reconstruction: Reconstruction;
}

/** An expert's projection before and after, oriented as it is factorised. */
interface Weights {
  readonly before: Float32Array;
  readonly after: Float32Array;
}

export class ExpertRepair {
  private readonly groups = new Map<Projection, LoadedGroup>();
  private readonly weights = new Map<Projection, Weights>();
  private statistics: ExpertStatistics | undefined;
  private down: DownRepair | undefined;
  /** Whether hidden activations of the expert were added. */
  private activated = false;
  /** C of the expert, (d, d). */
  private columns = new Float32Array(0);

  constructor(private readonly engine: Engine) {}

  /** Holds the shared factors of a projection until others are loaded. */
  async load(projection: Projection, factors: LoadedFactors): Promise<void> {
    await this.unload(projection);
    const form = loadedForm(factors);
    const { method, problem, dtype } = form;
    const { byExpert, ...common } = storedFactors(form);
    const shared = decodeFactors(common.shared, factors.shared);
    const round = (values: Float32Array): Float32Array => floatsOf(dtype, encodeFinite(dtype, values, projection));
    // The columns of a transposed down_proj are outputs, of which the record knows nothing.
    const metric: Metric | undefined = factors.format.transposed
      ? undefined
      : { columns: { form: 'full', shared: false, read: (_, target) => target.set(this.columns) } };
    const own = { method, factors: byExpert };
    const how = { ridge: factors.ridge, gram: needsGram(own) };
    this.groups.set(projection, {
      factors,
      form: own,
      own: await method.expertFactors(this.engine, problem, shared, round, metric, how),
      norm: metric && (await createMetricNorm(this.engine, problem, metric)),
      reconstruction: await method.rebuild(this.engine, problem, shared),
    });
  }

  /** Begins with an expert, whose inputs follow. */
  begin(shape: ExpertShape, expert: MeasuredExpert): void {
    const { rows, cols } = shape;
    const form = { columns: { form: 'full', shared: false } } as const;
    this.statistics ??= new ExpertStatistics(this.engine, {
      ...{ projection: 'gate_proj', rows, cols, form, activation: 'silu', seed: 0 },
    });
    this.statistics.begin(expert, {});
  }

  /** Adds inputs of the expert. */
  async count(batch: TokenBatch): Promise<void> {
    await this.statistics?.add(batch);
  }

  /** Takes the expert's metric. Returns whether all of its numbers are finite. */
  async measure(): Promise<boolean> {
    const { matrices } = await (this.statistics as ExpertStatistics).finish();
    this.columns = new Float32Array(matrices.buffer);
    return allFinite('F32', matrices);
  }

  /** Fits an expert's factors in the metric. For down_proj, its weights are repaired first if hidden activations were added. */
  async fit(
    projection: Projection,
    expert: number,
    dense: StoredWeights,
    { label, written }: RepairOutput,
  ): Promise<RepairedTensors> {
    const { factors, form, own, norm, reconstruction } = this.groups.get(projection) as LoadedGroup;
    const { format } = factors;
    const before = decodeAsStored(dense);
    const wanted = projection === 'down_proj' ? await this.repaired(before) : before;
    // The weights are not divided by σ, so A includes it.
    const tensors = await encodeExpert(form, own, { expert, target: asFactorised(format, wanted), sigma: 1, label });
    const after = await reconstruction.expert(expert, decodeFactors(form.factors, tensors));
    const oriented = asFactorised(format, before);
    this.weights.set(projection, { before: oriented, after });
    const metric = norm && {
      squaredError: await norm.squared(
        expert,
        oriented.map((value, i) => value - (after[i] as number)),
      ),
      squaredNorm: await norm.squared(expert, oriented),
    };
    if (written === 'factors') return { tensors, metric, ...squaredError(oriented, after) };
    const gram = format.transposed ? undefined : this.columns;
    return { metric, ...writtenWeights(written, dense, before, asStored(format, after), label, gram) };
  }

  /** Sets a projection that is not factorised, and so is the same before and after. */
  keep(projection: Projection, dense: StoredWeights): void {
    const weights = decodeAsStored(dense);
    this.weights.set(projection, { before: weights, after: weights });
  }

  /** Begins to add hidden activations, when gate and up are set. */
  async compare(shape: ExpertShape): Promise<void> {
    this.down ??= await createDownRepair(this.engine, shape);
    const [gate, up] = [this.weights.get('gate_proj'), this.weights.get('up_proj') as Weights];
    this.down.begin({ gate: gate?.before, up: up.before }, { gate: gate?.after, up: up.after });
  }

  /** Adds hidden activations. */
  async activate(batch: TokenBatch): Promise<void> {
    await this.down?.add(batch);
    this.activated = true;
  }

  /** Repairs a dense down_proj. */
  async dense(dense: StoredWeights, encoding: StoredEncoding, label: string): Promise<RepairedTensors> {
    const before = decodeAsStored(dense);
    return writtenWeights(encoding, dense, before, await this.repaired(before), label);
  }

  private async repaired(down: Float32Array): Promise<Float32Array> {
    if (!this.down || !this.activated) return down;
    this.activated = false;
    return this.down.solve(down);
  }

  private async unload(projection: Projection): Promise<void> {
    const held = this.groups.get(projection);
    this.groups.delete(projection);
    await held?.own.dispose();
    await held?.norm?.dispose();
    await held?.reconstruction.dispose();
  }

  /** Frees all that a layer held. The next layer may have other shapes. */
  async release(): Promise<void> {
    for (const projection of this.groups.keys()) await this.unload(projection);
    this.weights.clear();
    await this.statistics?.dispose();
    await this.down?.dispose();
    this.statistics = this.down = undefined;
    this.columns = new Float32Array(0);
  }
}

function writtenWeights(
  encoding: StoredEncoding,
  { format, bytes }: StoredWeights,
  before: Float32Array,
  after: Float32Array,
  label: string,
  gram?: Float32Array,
): RepairedTensors {
  // Weights that no token reached are not repaired: they keep the codes of the source.
  if (after === before && encoding.kind !== 'float')
    return { tensors: sourceWeights(encoding, format, bytes), ...squaredError(before, before) };
  const { tensors, values } = encodeWeights(encoding, format, after, label, gram);
  return { tensors, ...squaredError(before, values) };
}
