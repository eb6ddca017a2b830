/**
 * The seam for factorisation methods. A method is one folder beside this file and one line in registry.ts: everything that
 * depends on how experts are factorised is asked of this interface.
 */
import type { z } from 'zod';
import type { TensorInfo } from '../checkpoint/header.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import type { Engine, EngineFacts } from '../engine/engine.js';
import type { ProductShape } from '../engine/gemm-rate.js';
import type { NativeForm, Projection } from '../models/family.js';
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

/** A projection of a layer, all its experts. */
export interface ProjectionShape extends GroupShape {
  /** False: it stays as it is, and only counts among the parameters to keep a share of. */
  readonly factorised: boolean;
  /** One of its tensors and the shape in which it is stored, for errors. */
  readonly example: { readonly name: string; readonly rows: number; readonly cols: number };
}

/** The share of the experts' parameters to keep where nothing is said: what the paper keeps of Qwen3's. */
export const DEFAULT_KEEP = 0.76;

export const QUALITY_NAMES = ['fast', 'balanced', 'best'] as const;
/** How much time a fit may take for its result. */
export type Quality = (typeof QUALITY_NAMES)[number];

/** Options that not every method takes. */
export interface MethodOptions {
  readonly bases?: number | undefined;
  /** The share of the layers' routed-expert parameters to keep. */
  readonly keep?: number | undefined;
  readonly rank?: number | undefined;
  /** Parts into which a layer's experts are cut. */
  readonly groups?: number | undefined;
  readonly activation?: string | undefined;
  readonly quality?: Quality | undefined;
  readonly steps?: number | undefined;
  readonly learningRate?: number | undefined;
  readonly batchExperts?: number | undefined;
}

/** The same once defaults are filled in. */
export interface CompleteOptions extends MethodOptions {
  readonly groups: number;
  readonly solver: string;
  /** Most steps of a fit. */
  readonly steps: number;
}

/** A factor that a method stores: its name within the method, and its shape. */
export interface FactorShape {
  readonly name: string;
  readonly shape: readonly number[];
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
  /** Whether it is given by all its elements, (size, size), or by its diagonal, (size). */
  readonly form: 'full' | 'diagonal';
  /** True: one matrix serves all experts. False: each expert has its own. */
  readonly shared: boolean;
}

/** The form of a metric without its numbers, from which a fit's memory follows. */
export interface MetricForm {
  readonly rows?: MetricMatrixForm | undefined;
  readonly columns?: MetricMatrixForm | undefined;
}

/** A symmetric positive definite matrix for each expert. */
export interface MetricMatrix extends MetricMatrixForm {
  /** Writes the matrix of expert i in its form: f32, row-major. A shared matrix is only asked for as that of expert 0. */
  read(expert: number, target: Float32Array): void;
}

/**
 * The error of an expert is tr(P R C Rᵀ) for its residual R (p, d). Without a metric it is ‖R‖². The maker of a metric
 * scales it; a mean diagonal of 1 keeps losses comparable with those of a fit without one.
 */
export interface Metric extends MetricForm {
  /** P, (p, p). Undefined: the identity. */
  readonly rows?: MetricMatrix | undefined;
  /** C, (d, d). Undefined: the identity. */
  readonly columns?: MetricMatrix | undefined;
}

/** The normalised weights W/σ that a fit approximates. */
export interface Targets {
  /** Writes expert i as (p, d) f32, row-major. */
  read(expert: number, target: Float32Array): void;
  /** The fit has its own copy of an expert: what was kept for `read` may go. It may still be read, which then costs more. */
  forget?(expert: number): void;
  /** Undefined: the identity on both sides. */
  readonly metric?: Metric | undefined;
}

export interface FitStep {
  /** Counted from 1. */
  readonly step: number;
  /** How many steps the fit will take, as things stand. */
  readonly steps: number;
  /** Mean squared error in units of σ²; with a metric, the mean of tr(P R C Rᵀ)/(p·d). */
  readonly loss: number;
  /** The learning rate of this step. */
  readonly rate: number;
  /** Seconds to the end of the last step, by the pace so far; NaN while unknown. */
  readonly secondsLeft: number;
}

/** All that a fit's next steps are computed from: arrays that are saved and come back bit by bit. */
export type FitState = Readonly<Record<string, Float32Array | Float64Array>>;

export interface StateStore {
  /** The last state that was saved of this very fit. */
  load(): Promise<FitState | undefined>;
  /** True when it is time to save. `bytes` is the size of a state. */
  due(bytes: number): boolean;
  /** Resolves when the arrays may change again. */
  save(state: FitState): Promise<void>;
}

export interface FitOptions {
  /** One of the method's `solvers`. */
  readonly solver: string;
  /** Most steps to take. */
  readonly steps: number;
  /** Undefined: the solver's own choice. */
  readonly learningRate?: number | undefined;
  /** Experts in a batch; bounds a step's working set. */
  readonly batchExperts: number;
  /** Keep the decoded targets (n·p·d f32) for the whole fit; otherwise each step decodes them again. */
  readonly holdTargets: boolean;
  readonly seed: number;
  /** Names the group in errors. */
  readonly label: string;
  /** σ by which the targets were divided. */
  readonly sigma: number;
  /** Called at every step, before its update. */
  readonly onStep?: ((step: FitStep) => void) | undefined;
  /** Where the fit saves its state and resumes from. It makes no difference to the result. */
  readonly states?: StateStore | undefined;
}

/** What a fit finds: the factors that the experts share. Those of each expert follow from these (`expertFactors`). */
export interface Fit {
  readonly shared: Factors;
  readonly steps: number;
  readonly losses: readonly LossPoint[];
}

/** The values as they will be read back from where they are stored, in memory of their own. */
export type Rounding = (values: Float32Array) => Float32Array;

/** Finds the factors of single experts, given the shared ones as they are stored. */
export interface ExpertFactors {
  /** The factors for W/σ = `target`: (p, d) f32, row-major. */
  fit(expert: number, target: Float32Array): Promise<Factors>;
  dispose(): Promise<void>;
}

/** Rebuilds the weights of single experts. There is one way from factors to weights, so that all commands agree to the bit. */
export interface Reconstruction {
  /** Ŵ, (p, d) f32, row-major. */
  expert(expert: number, factors: Factors): Promise<Float32Array>;
  dispose(): Promise<void>;
}

/** A group's place in a checkpoint. */
export interface NativePlace extends GroupNumber {
  /** What comes before `experts.{e}` in the standard tensor names, e.g. `model.layers.3.mlp.` */
  readonly prefix: string;
  readonly projection: Projection;
}

/** Tensor names by the names of the factors they hold. */
export interface GroupNames {
  readonly shared: Readonly<Record<string, string>>;
  /** In expert order. */
  readonly experts: ReadonlyArray<Readonly<Record<string, string>>>;
}

/** All groups of a native checkpoint, which are alike. */
export interface NativeGroups<P> {
  /** Of each group. */
  readonly problem: P;
  /** Into which each layer's experts are cut. */
  readonly groups: number;
  readonly layers: readonly number[];
  readonly projections: readonly Projection[];
  readonly solver: string;
  readonly sourceFingerprint: string;
}

/** How factors stand in a checkpoint: a native one, whose modelling files compute with them. */
export interface NativeFactors<P extends GroupShape = GroupShape> {
  /** Matches one tensor of each group: prefix, layer, short name of the projection, number of the group where there are several. */
  readonly marker: RegExp;
  /** A tensor that `marker` matches, for errors. */
  readonly example: string;
  names(place: NativePlace, experts: number): GroupNames;
  /**
   * The problem that a group's tensors solve. Throws an `InputError` where a tensor is missing or the shapes do not fit together.
   * @param marked the tensor that `marker` matched
   * @param checkpoint where the others are, and what its config says
   */
  problem(place: NativePlace, marked: TensorInfo, checkpoint: NativeSource): P;
  /** What changes in the source's `config.json`. */
  config(source: Readonly<Record<string, unknown>>, form: NativeForm, groups: NativeGroups<P>): ConfigChanges;
  /** What changes in a native `config.json` to make it its source's again. */
  dense(config: Readonly<Record<string, unknown>>): ConfigChanges;
}

export type NativeSource = Pick<Checkpoint, 'folder' | 'config' | 'tensors'>;

export interface Method<P extends GroupShape = GroupShape> {
  /** As `--method` names it. */
  readonly name: string;
  /** For people, e.g. in the model card. */
  readonly title: string;
  /** What weights are replaced by, for people. */
  readonly formula: string;
  /** Where it is published. */
  readonly reference?: string;
  /** The first is the default. */
  readonly solvers: readonly string[];
  /** The options that it takes; others are refused. */
  readonly options: ReadonlyArray<keyof MethodOptions>;
  /** Fills in defaults. */
  complete(given: MethodOptions & { readonly solver?: string | undefined }): CompleteOptions;
  /**
   * The problem of each part of each factorised projection, in their order. Throws `OptionError` or `NotSmallerError` where the
   * options do not suit the shapes.
   * @param projections all projections of the layers to convert
   */
  plan(projections: readonly ProjectionShape[], options: CompleteOptions): P[];

  /** Checks a problem that came as JSON. */
  readonly problemSchema: z.ZodType<P>;
  /** What a problem says beside the shapes of its factors; kept in the metadata of factor files. */
  details(problem: P): Readonly<Record<string, unknown>>;
  /**
   * The problem whose factors have these shapes, unchecked: the inverse of `stores` and `details`.
   * @param shapes by factor; those of each expert stacked, (n, …)
   */
  problemOf(shapes: Readonly<Record<string, readonly number[]>>, details: Readonly<Record<string, unknown>>): unknown;
  /** The factors of a group, for people: "8 bases of 64 × 192". */
  describe(problem: P): string;
  /** The factor of each expert that σ is multiplied into. */
  readonly scaled: string;
  stores(problem: P): StoredFactors;
  /** Undefined: it converts to standard weights only. */
  readonly native?: NativeFactors<P>;

  /** Bytes a fit holds from step to step, beside the group's stored weights. */
  stateBytes(
    problem: P,
    options: {
      readonly solver: string;
      readonly holdTargets: boolean;
      readonly metric?: MetricForm | undefined;
    },
  ): number;
  /** Bytes of a step's working set for each expert of a batch. */
  batchBytes(problem: P, metric?: MetricForm): number;
  /** Throws `TensorTooLargeError` where a device's limit on tensors rules the problem out. */
  largestBatch(problem: P, engine: EngineFacts, metric?: MetricForm): number;
  /** Floating-point operations of a fit of so many steps and of all experts' factors, at the rate of matrix products. */
  operations(problem: P, options: { readonly solver: string; readonly steps: number }): number;
  /** The matrix product that a fit spends its time on, for one expert: engines are measured by it. */
  product(problem: P): ProductShape;

  /** Throws `OptionError` where the solver cannot fit in the metric of the targets. */
  fit(engine: Engine, problem: P, targets: Targets, options: FitOptions): Promise<Fit>;
  /**
   * @param shared as stored: rounded to the output dtype
   * @param round rounds to the output dtype, for factors that are fitted to others of the same expert
   * @param metric of the targets
   */
  expertFactors(engine: Engine, problem: P, shared: Factors, round: Rounding, metric?: Metric): Promise<ExpertFactors>;
  rebuild(engine: Engine, problem: P, shared: Factors): Promise<Reconstruction>;
}

/** A problem with the method that it is one of. */
export interface MethodProblem<P extends GroupShape = GroupShape> {
  readonly method: Method<P>;
  readonly problem: P;
}
