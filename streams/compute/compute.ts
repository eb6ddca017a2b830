/** The arithmetic that runs in a thread: fitting groups (jobs), and rebuilding weights from finished factors. */
import {
  ExpertStatistics,
  type ExpertWeights,
  type Measured,
  type MeasuredExpert,
  type StatisticsOptions,
  sharesCovariance,
  type TokenBatch,
} from '../../src/calibration/expert-statistics.js';
import type { StoredEncoding } from '../../src/checkpoint/encoding.js';
import { asStored, decodeMatrix } from '../../src/checkpoint/stored-matrix.js';
import { createEngine, type EngineName } from '../../src/engine/create-engine.js';
import type { Engine } from '../../src/engine/engine.js';
import { mapValues } from '../../src/map-values.js';
import { decodeFactors, type StoredFactor, type StoredParts, storedFactors } from '../../src/methods/factor-storage.js';
import type { Reconstruction } from '../../src/methods/method.js';
import type { Projection } from '../../src/models/family.js';
import { ExpertRepair } from './expert-repair.js';
import { type FitJob, type JobData, type JobHooks, type JobOutput, runJob } from './job.js';
import { type SquaredError, squaredError } from './squared-error.js';
import { decodeAsStored, type LoadedFactors, loadedForm, type StoredWeights } from './stored-weights.js';
import { encodeWeights, type WrittenTensors } from './written-weights.js';

/** The projections of an expert as stored. */
export type StoredExpert = Readonly<Partial<Record<keyof ExpertWeights, StoredWeights>>>;

/** Rebuilt weights of one expert as they are written, and their squared error. */
export interface RebuiltWeights extends SquaredError {
  readonly tensors: WrittenTensors;
}

/** Names an expert in errors, and says how its weights are written. */
export interface RebuildOutput {
  readonly label: string;
  readonly encoding: StoredEncoding;
}

/** The engine of a `Compute` and its number of CPU threads. */
export interface ComputeOptions {
  readonly engine: EngineName;
  readonly threads: number;
}

/** Loaded factors. */
interface Held {
  readonly factors: LoadedFactors;
  readonly byExpert: readonly StoredFactor[];
  readonly reconstruction: Reconstruction;
}

/** An engine, and the factors that are loaded into it. */
export class Compute {
  private statistics: Array<{ readonly projection: Projection; readonly of: ExpertStatistics }> = [];
  private held: Held | undefined;

  private readonly repairs: ExpertRepair;

  private constructor(private readonly engine: Engine) {
    this.repairs = new ExpertRepair(engine);
  }

  static async create({ engine, threads }: ComputeOptions): Promise<Compute> {
    return new Compute(await createEngine(engine, { threads }));
  }

  /** Runs a job. Nothing is kept after it. */
  run(job: FitJob, data: JobData, hooks: JobHooks): AsyncGenerator<JobOutput> {
    return runJob(this.engine, job, data, hooks);
  }

  /** Holds finished factors until others are loaded. */
  async load(factors: LoadedFactors): Promise<void> {
    await this.release();
    const form = loadedForm(factors);
    const { shared, byExpert } = storedFactors(form);
    const rounded = decodeFactors(shared, factors.shared);
    this.held = { factors, byExpert, reconstruction: await form.method.rebuild(this.engine, form.problem, rounded) };
  }

  /**
   * Rebuilds the weights of one expert of the loaded group, in the stored orientation. Their error is measured against `dense`, and
   * is 0 of 0 without it. Throws `OverflowError`, which names `label`.
   */
  async rebuild(
    expert: number,
    own: StoredParts,
    { label, encoding }: RebuildOutput,
    dense?: StoredWeights,
  ): Promise<RebuiltWeights> {
    const { format } = this.loaded().factors;
    const rebuilt = asStored(format, await this.reconstruct(expert, own));
    const { tensors, values } = encodeWeights(encoding, format, rebuilt, label);
    return { tensors, ...squaredError(dense ? decodeAsStored(dense) : new Float32Array(0), values) };
  }

  /** The error of the weights that one expert's factors give, against its dense weights. */
  async compare(expert: number, own: StoredParts, { format, bytes }: StoredWeights): Promise<SquaredError> {
    const dense = new Float32Array(format.rows * format.cols);
    decodeMatrix(format, bytes, dense);
    return squaredError(dense, await this.reconstruct(expert, own));
  }

  /** The error of rebuilt weights that are already stored. */
  difference(rebuilt: StoredWeights, dense: StoredWeights): Promise<SquaredError> {
    return Promise.resolve(squaredError(decodeAsStored(dense), decodeAsStored(rebuilt)));
  }

  /** Prepares to measure the metrics of some projections of the same experts, one expert after another. */
  async openStatistics(projections: readonly StatisticsOptions[]): Promise<void> {
    for (const { of } of this.statistics) await of.dispose();
    this.statistics = [];
    for (const options of projections) {
      const twin = this.statistics.find(({ projection }) => sharesCovariance(projection, options.projection));
      const of = new ExpertStatistics(this.engine, options, twin?.of);
      this.statistics.push({ projection: options.projection, of });
    }
  }

  /** Begins to measure an expert. Its tokens follow. */
  async beginExpert(expert: MeasuredExpert, stored: StoredExpert): Promise<void> {
    const weights: ExpertWeights = mapValues(stored as Record<string, StoredWeights>, decodeAsStored);
    for (const { of } of this.statistics) of.begin(expert, weights);
  }

  /** Adds some of its tokens. */
  async addTokens(tokens: TokenBatch): Promise<void> {
    for (const { of } of this.statistics) await of.add(tokens);
  }

  /** The expert's metrics, in the order of the projections. */
  async finishExpert(): Promise<Measured[]> {
    const measured: Measured[] = [];
    for (const { of } of this.statistics) measured.push(await of.finish());
    return measured;
  }

  /** Calls a method of the thread's `ExpertRepair`. */
  repair<M extends RepairMethod>(method: M, ...args: Parameters<ExpertRepair[M]>): ReturnType<ExpertRepair[M]> {
    // biome-ignore lint/suspicious/noExplicitAny: the parameters are those of this method
    return (this.repairs[method] as any)(...args);
  }

  private loaded(): Held {
    if (!this.held) throw new TypeError('no factors are loaded');
    return this.held;
  }

  private async reconstruct(expert: number, own: StoredParts): Promise<Float32Array> {
    const { byExpert, reconstruction } = this.loaded();
    return reconstruction.expert(expert, decodeFactors(byExpert, own));
  }

  /** Frees the loaded factors. */
  async release(): Promise<void> {
    await this.held?.reconstruction.dispose();
    this.held = undefined;
  }
}

/** The methods of `ExpertRepair`. */
export type RepairMethod = keyof ExpertRepair;
