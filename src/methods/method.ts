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

/**
 * How an error counts: tr(P R C Rᵀ) for the residual R (p, d) of an expert. Without one, ‖R‖².
 * C and P are scaled by whoever makes them; a solver only uses them.
 */
export interface Metric {
  /** C, (d, d) f32, symmetric positive definite; the same for all experts, or one for each. Undefined: the identity. */
  readonly covariance?: ((expert: number) => Float32Array) | undefined;
  /** The diagonal of P, (p) f32, positive. Undefined: the identity. */
  readonly rowWeights?: ((expert: number) => Float32Array) | undefined;
}

/** The normalised weights W/σ that a fit approximates. */
export interface Targets {
  /** Writes expert i as (p, d) f32, row-major. */
  read(expert: number, target: Float32Array): void;
  /** The fit has its own copy of an expert: what was kept for `read` may go. It may still be read, which then costs more. */
  forget?(expert: number): void;
  readonly metric?: Metric | undefined;
}

export interface FitStep {
  /** Counted from 1. */
  readonly step: number;
  /** How many steps the fit will take, as things stand. */
  readonly steps: number;
  /** Mean squared error in units of σ². */
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
  fit(expert: number, target: Float32Array, metric?: Metric): Promise<Factors>;
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
  stateBytes(problem: P, options: { readonly solver: string; readonly holdTargets: boolean }): number;
  /** Bytes of a step's working set for each expert of a batch. */
  batchBytes(problem: P): number;
  /** Throws `TensorTooLargeError` where a device's limit on tensors rules the problem out. */
  largestBatch(problem: P, engine: EngineFacts): number;
  /** Floating-point operations of one step over the whole group. */
  stepOperations(problem: P, solver: string): number;

  fit(engine: Engine, problem: P, targets: Targets, options: FitOptions): Promise<Fit>;
  /** @param shared as stored: rounded to the output dtype */
  expertFactors(engine: Engine, problem: P, shared: Factors): Promise<ExpertFactors>;
  rebuild(engine: Engine, problem: P, shared: Factors): Promise<Reconstruction>;
}
