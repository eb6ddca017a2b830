/**
 * The interface of factorisation methods. A method is one folder next to this file and one line in registry.ts. All other code
 * asks this interface for everything that depends on how experts are factorised.
 */
import type { z } from 'zod';
import type { StoredEncoding } from '../checkpoint/encoding.js';
import type { TensorInfo } from '../checkpoint/header.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import type { Engine, EngineFacts, Precision } from '../engine/engine.js';
import type { ProductShape } from '../engine/gemm-rate.js';
import type { Projection } from '../models/family.js';
import type { ConfigChanges, GroupNumber } from '../models/native.js';
import type { LossPoint } from './loss-curve.js';

/** The matrices that are factorised together: n experts of (p, d). Each method adds the sizes of its factors. */
export interface GroupShape {
  /** n */
  readonly experts: number;
  /** p */
  readonly rows: number;
  /** d */
  readonly cols: number;
}

/** All experts of a layer's projection. */
export interface ProjectionShape extends GroupShape {
  /** False if the projection stays dense. It then still counts in the parameters of which `keep` is a share. */
  readonly factorised: boolean;
  /** m of all its groups together, if an allocation decided it. */
  readonly bases?: number | undefined;
  /** One of its tensors and that tensor's stored shape, for errors. */
  readonly example: { readonly name: string; readonly rows: number; readonly cols: number };
}

/** The default share of the experts' parameters to keep: that of the paper for Qwen3. */
export const DEFAULT_KEEP = 0.76;

/** In the order of the time they take. */
export const QUALITY_NAMES = ['fast', 'balanced', 'best'] as const;
/** How much time a fit may take for its result. */
export type Quality = (typeof QUALITY_NAMES)[number];

/** Options that not every method takes. */
export interface MethodOptions {
  readonly bases?: number | undefined;
  readonly keep?: number | undefined;
  readonly rank?: number | undefined;
  /** The number of parts into which a layer's experts are cut. */
  readonly groups?: number | undefined;
  readonly activation?: string | undefined;
  readonly quality?: Quality | undefined;
  readonly steps?: number | undefined;
  readonly learningRate?: number | undefined;
  readonly batchExperts?: number | undefined;
  readonly precision?: Precision | undefined;
  /** The bits of a quantised weight. */
  readonly width?: 4 | 8 | undefined;
  /** The columns of a row that share a scale. */
  readonly scaleGroup?: 64 | 128 | undefined;
  /** A calibration record, and what it is used for. */
  readonly calibration?: string | undefined;
  readonly metric?: string | undefined;
  readonly repair?: string | undefined;
}

/** Options with defaults filled in. */
export interface CompleteOptions extends MethodOptions {
  readonly groups: number;
  readonly solver: string;
  /** The most steps of a fit. */
  readonly steps: number;
  /** Whether the caller gave `keep`. */
  readonly keepGiven?: boolean | undefined;
}

/** Sizes that a method takes because the default share cannot be kept in the usual way. */
export interface DefaultSizes {
  /** Says which sizes, and why. */
  readonly note: string;
  /** The options that give the same sizes; empty if sizes differ between layers. */
  readonly options: Pick<MethodOptions, 'bases' | 'keep' | 'rank'>;
}

/** A factor that a method stores: its name within the method, and its shape. */
export interface FactorShape {
  readonly name: string;
  readonly shape: readonly number[];
  /** True if it may be stored in a quantised dtype. Small factors are always floats. */
  readonly coded?: boolean;
}

/** The factors of a group: those shared by its experts, and those of each expert. */
export interface StoredFactors {
  readonly shared: readonly FactorShape[];
  readonly byExpert: readonly FactorShape[];
}

/** Factors by name: f32, row-major, of the shape that `stores` gives. */
export type Factors = Readonly<Record<string, Float32Array>>;

/** The form of a matrix (size, size) that weighs the rows or the columns of a residual. */
export interface MetricMatrixForm {
  /**
   * Whether it is given by all its elements, (size, size); by its diagonal, (size); or as c·I + ZZᵀ, by Z (size, rank) and then c.
   */
  readonly form: 'full' | 'diagonal' | 'low-rank';
  /** The columns of Z, if the form is low-rank. */
  readonly rank?: number | undefined;
  /** True if all experts share one matrix, false if each expert has its own. */
  readonly shared: boolean;
}

/** The form of a metric without its numbers, from which a fit's memory follows. */
export interface MetricForm {
  readonly rows?: MetricMatrixForm | undefined;
  readonly columns?: MetricMatrixForm | undefined;
}

/** A symmetric positive definite matrix for each expert. */
export interface MetricMatrix extends MetricMatrixForm {
  /** Writes the matrix of an expert in its form: f32, row-major. A shared matrix is read only as that of expert 0. */
  read(expert: number, target: Float32Array): void;
  /** The matrix of an expert where it is in memory, if it is. It must not be changed. */
  view?(expert: number): Float32Array;
}

/**
 * With a metric, the error of an expert with residual R (p, d) is tr(P R C Rᵀ). Without, it is ‖R‖². The caller scales the
 * metric. A mean diagonal of 1 keeps losses comparable with those of a fit without a metric.
 */
export interface Metric extends MetricForm {
  /** P, (p, p); undefined means the identity. */
  readonly rows?: MetricMatrix | undefined;
  /** C, (d, d); undefined means the identity. */
  readonly columns?: MetricMatrix | undefined;
}

/** The normalised weights W/σ that a fit approximates. */
export interface Targets {
  /** Writes expert i as (p, d) f32, row-major. */
  read(expert: number, target: Float32Array): void;
  /** Called when the fit has its own copy of an expert. Its memory may be freed; a later `read` then decodes it again. */
  forget?(expert: number): void;
  /** Undefined means the identity on both sides. */
  readonly metric?: Metric | undefined;
}

/** A step of a fit, as progress tells of it. */
export interface FitStep {
  /** Counted from 1. */
  readonly step: number;
  /** The number of steps that the fit is now expected to take. */
  readonly steps: number;
  /** Mean squared error in units of σ²; with a metric, the mean of tr(P R C Rᵀ)/(p·d). */
  readonly loss: number;
  /** The learning rate of this step. */
  readonly rate: number;
  /** Expected seconds to the end of the fit, from its pace so far; NaN while unknown. */
  readonly secondsLeft: number;
}

/** The state of a fit, from which its next steps follow. Arrays are saved and loaded bit by bit. */
export type FitState = Readonly<Record<string, Float32Array | Float64Array>>;

/** A fit saves its state here. After an interruption, it reads it here again. */
export interface StateStore {
  /** Loads the last saved state of this fit; undefined if there is none. */
  load(): Promise<FitState | undefined>;
  /** Whether it is time to save. `bytes` is the size of a state. */
  due(bytes: number): boolean;
  /** Saves a state. The arrays must not change before this resolves. */
  save(state: FitState): Promise<void>;
}

/** The options of a fit. */
export interface FitOptions {
  /** One of the method's `solvers`. */
  readonly solver: string;
  /** The most steps to take. */
  readonly steps: number;
  /** If undefined, the solver chooses it. */
  readonly learningRate?: number | undefined;
  /** Experts in a batch. This bounds a step's working set. */
  readonly batchExperts: number;
  /**
   * The price of large factors in the fit, as a share of the mean diagonal of the Gram matrix that they are solved in. Rounding
   * multiplies less of the error of factors that are small. If undefined, the fit only minds what f32 can solve.
   */
  readonly ridge?: number | undefined;
  /** The precision of the products of steps, on engines that have it; default: f32. The factors that single experts get are always f32's. */
  readonly precision?: Precision | undefined;
  /** Whether the decoded targets (n·p·d f32) are kept for the whole fit. Otherwise each step decodes them again. */
  readonly holdTargets: boolean;
  readonly seed: number;
  /** Names the group in errors. */
  readonly label: string;
  /** σ by which the targets were divided. */
  readonly sigma: number;
  /** Called at every step, before its update. It may throw to stop the fit. */
  readonly onStep?: ((step: FitStep) => void) | undefined;
  /** Saves the fit's state, and loads it to resume. It does not change the result. */
  readonly states?: StateStore | undefined;
}

/** The result of a fit: the factors that the experts share. `expertFactors` finds the factors of each expert from them. */
export interface Fit {
  readonly shared: Factors;
  readonly steps: number;
  readonly losses: readonly LossPoint[];
}

/** Rounds values to the dtype in which they will be stored. Returns a new array. */
export type Rounding = (values: Float32Array) => Float32Array;

/** How the factors of single experts are found. */
export interface ExpertFactorOptions {
  /** As in `FitOptions`. */
  readonly ridge?: number | undefined;
  /** Whether `fitWithGram` will be called. */
  readonly gram?: boolean | undefined;
}

/** Finds the factors of single experts for given shared factors. */
export interface ExpertFactors {
  /** The factors for W/σ = `target`: (p, d) f32, row-major. */
  fit(expert: number, target: Float32Array): Promise<Factors>;
  /**
   * As `fit`, with G, (r, r) f32: a change E of the factor that is solved for adds tr(E·G·Eᵀ) to what the fit minimises. Only for
   * methods that solve for a factor, and if `gram` was asked for.
   */
  fitWithGram?(expert: number, target: Float32Array): Promise<{ factors: Factors; gram: Float32Array }>;
  dispose(): Promise<void>;
}

/** Rebuilds the weights of single experts. All commands use this one function, so that they agree to the bit. */
export interface Reconstruction {
  /** Ŵ, (p, d) f32, row-major. */
  expert(expert: number, factors: Factors): Promise<Float32Array>;
  dispose(): Promise<void>;
}

/** A group's place in a checkpoint. */
export interface NativePlace extends GroupNumber {
  readonly layer: number;
  /** The part of standard tensor names before `experts.{e}`, e.g. `model.layers.3.mlp.` */
  readonly prefix: string;
  readonly projection: Projection;
}

/** The tensor name of each factor, by the factor's name. */
export interface GroupNames {
  readonly shared: Readonly<Record<string, string>>;
  /** In expert order. */
  readonly experts: ReadonlyArray<Readonly<Record<string, string>>>;
}

/** The form of a method's factors in a native checkpoint, whose modelling files compute with them. */
export interface NativeFactors<P extends GroupShape = GroupShape> {
  /**
   * Matches the name of one tensor of each group. Captures prefix, layer, short name of the projection, and group number if
   * there are several.
   */
  readonly marker: RegExp;
  /** A tensor name that `marker` matches, for errors. */
  readonly example: string;
  /** The tensors of a group. */
  names(place: NativePlace, experts: number): GroupNames;
  /**
   * The problem that a group's tensors solve. Throws an `InputError` if a tensor is missing or shapes do not fit together.
   * @param marked the tensor that `marker` matched
   * @param checkpoint has the other tensors and the config
   */
  problem(place: NativePlace, marked: TensorInfo, checkpoint: NativeSource): P;
  /** The facts about a projection's factors that `mobe.factors` of config.json lists: what the modelling file needs. */
  sizes(problem: P, groups: number): Readonly<Record<string, unknown>>;
  /** Entries at the top of config.json by which other programs load a checkpoint with the same sizes in all projections. */
  common?(problem: P, groups: number): ConfigChanges;
}

/** The parts of a native checkpoint that a method reads. */
export type NativeSource = Pick<Checkpoint, 'folder' | 'config' | 'tensors'>;

/** Bytes that a fit holds. */
export interface FitMemory {
  /** Decoded weights and their metric, where they are kept. */
  readonly targets: number;
  /** The solver's data from step to step, with the programs that move it. */
  readonly state: number;
  /** The programs that compute with a batch of experts. */
  readonly batch: number;
}

/** The options that decide what a fit holds. */
export interface FitMemoryOptions {
  readonly solver: string;
  /** Whether the engine writes to parts of tensors (`EngineFacts`). */
  readonly writesParts?: boolean | undefined;
  readonly batchExperts: number;
  readonly holdTargets: boolean;
  readonly metric?: MetricForm | undefined;
}

/** A factorisation method: what it stores, what a fit costs, the fit, and the way back to weights. */
export interface Method<P extends GroupShape = GroupShape> {
  /** The name for `--method`. */
  readonly name: string;
  /** The name in texts, e.g. in the model card. */
  readonly title: string;
  /** The formula that replaces weights, for texts. */
  readonly formula: string;
  /** The publication. */
  readonly reference?: string;
  /** The solvers; the first is the default. */
  readonly solvers: readonly string[];
  /** The options that the method takes. Others are refused. */
  readonly options: ReadonlyArray<keyof MethodOptions>;
  /** Fills in defaults. Throws `OptionError` for options that contradict each other. */
  complete(given: MethodOptions & { readonly solver?: string | undefined }): CompleteOptions;
  /**
   * Returns one problem for each factorised projection, in order: that of each of its groups. Throws `OptionError` or
   * `NotSmallerError` if the options do not fit the shapes.
   * @param projections all projections of the layers to convert
   */
  plan(projections: readonly ProjectionShape[], options: CompleteOptions): P[];
  /** The sizes that `plan` chooses because the default share cannot be kept in the usual way; undefined if it can. */
  defaultSizes?(projections: readonly ProjectionShape[], options: CompleteOptions): DefaultSizes | undefined;

  /** The number of bases that a group's experts share, if the method has bases. An allocation changes it. */
  readonly bases?: { of(problem: P): number; change(problem: P, bases: number): P };
  /** The schema of a problem as JSON. */
  readonly problemSchema: z.ZodType<P>;
  /** The facts of a problem that the shapes of its factors do not show. Factor files keep them in their metadata. */
  details(problem: P): Readonly<Record<string, unknown>>;
  /**
   * The problem whose factors have these shapes: the inverse of `stores` and `details`. It is not checked.
   * @param shapes by factor name; factors of experts are stacked as (n, …)
   */
  problemOf(shapes: Readonly<Record<string, readonly number[]>>, details: Readonly<Record<string, unknown>>): unknown;
  /** Describes the factors of a group for messages, e.g. "8 bases of 64 × 192". */
  describe(problem: P): string;
  /** The name of the expert's factor into which σ is multiplied. */
  readonly scaled: string;
  /** The factors of a group, with their shapes. Names are the keys of `Factors`. */
  stores(problem: P): StoredFactors;
  /** The native form; undefined if the method converts only to standard weights. */
  readonly native?: NativeFactors<P>;
  /**
   * The encoding in which weights are written, if the method decides it. Its factors are the weights themselves, so it writes only
   * standard weights.
   */
  writes?(problem: P): StoredEncoding;
  /** True if the work for a group keeps one thread busy, however large the group is. So several groups are computed side by side. */
  readonly oneThread?: boolean | undefined;

  /** The bytes that a fit and all of its results hold at their peak, without the group's stored weights. */
  memory(problem: P, options: FitMemoryOptions): FitMemory;
  /**
   * Bytes of a step's working set, for each expert of a batch. The usual batch follows from it, and the batch decides the last bits
   * of the factors.
   */
  batchBytes(problem: P, metric?: MetricForm): number;
  /** The most experts in a batch that the device allows. Throws `TensorTooLargeError` if it allows none. */
  largestBatch(problem: P, engine: EngineFacts, metric?: MetricForm): number;
  /** Floating-point operations of a fit with so many steps and of all experts' factors, counted as matrix products. */
  operations(
    problem: P,
    options: { readonly solver: string; readonly steps: number; readonly metric?: MetricForm | undefined },
  ): number;
  /** The shape of the matrix product that takes most of a fit's time, for one expert. Engines are measured with it. */
  product(problem: P): ProductShape;

  /** Fits the shared factors. Throws `OptionError` if the solver cannot use the metric of the targets, and `DivergedError`. */
  fit(engine: Engine, problem: P, targets: Targets, options: FitOptions): Promise<Fit>;
  /**
   * Prepares to find the factors of single experts.
   * @param shared the shared factors, rounded to the output dtype
   * @param round rounds to the output dtype, for methods that fit one factor of an expert to another
   * @param metric the metric of the targets
   */
  expertFactors(
    engine: Engine,
    problem: P,
    shared: Factors,
    round: Rounding,
    metric?: Metric,
    options?: ExpertFactorOptions,
  ): Promise<ExpertFactors>;
  /**
   * Prepares to rebuild the weights of single experts.
   * @param shared as stored
   */
  rebuild(engine: Engine, problem: P, shared: Factors): Promise<Reconstruction>;
}

/** A method and a problem of it. */
export interface MethodProblem<P extends GroupShape = GroupShape> {
  readonly method: Method<P>;
  readonly problem: P;
}
