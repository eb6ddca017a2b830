/**
 * The seam for factorisation methods. A method is one folder beside this file and one line in registry.ts: everything that
 * depends on how experts are factorised is asked of this interface.
 */
import type { z } from 'zod';
import type { Engine, EngineFacts } from '../engine/engine.js';
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

/** A factor that a method stores: its name within the method, and its shape. */
export interface FactorShape {
  readonly name: string;
  readonly shape: readonly number[];
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

export interface Method<P extends GroupShape = GroupShape> {
  /** As `--method` names it. */
  readonly name: string;
  /** For people, e.g. in the model card. */
  readonly title: string;
  /** The first is the default. */
  readonly solvers: readonly string[];
  /** Checks a problem that came as JSON. */
  readonly problemSchema: z.ZodType<P>;
  /** The factor of each expert that σ is multiplied into. */
  readonly scaled: string;
  /** The factors of a group: those shared by its experts, and those of each expert. */
  stores(problem: P): { readonly shared: readonly FactorShape[]; readonly byExpert: readonly FactorShape[] };

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
  /** Floating-point operations of one step over the whole group. */
  stepOperations(problem: P, solver: string): number;

  /** Throws `OptionError` where the solver cannot fit in the metric of the targets. */
  fit(engine: Engine, problem: P, targets: Targets, options: FitOptions): Promise<Fit>;
  /**
   * @param shared as stored: rounded to the output dtype
   * @param metric the metric of the targets
   */
  expertFactors(engine: Engine, problem: P, shared: Factors, metric?: Metric): Promise<ExpertFactors>;
  rebuild(engine: Engine, problem: P, shared: Factors): Promise<Reconstruction>;
}
