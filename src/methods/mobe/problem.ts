import type { LossPoint } from '../loss-curve.js';

/**
 * One group to factorise: W_i/σ ≈ A_i · f(Σ_j α_ij B_j) for n experts W_i (p×d), with A_i (p×r) of its own for each
 * expert and m bases B_j (r×d) shared by all (arXiv 2508.05257, eq. 3–5).
 */
export interface Problem {
  /** n */
  readonly experts: number;
  /** p */
  readonly rows: number;
  /** d */
  readonly cols: number;
  /** m */
  readonly bases: number;
  /** r, at most min(p, d) */
  readonly rank: number;
  readonly activation: Activation;
}

/** Those of the paper's models, and all that its scripts know. */
export const REFERENCE_ACTIVATIONS = ['silu', 'tanh'] as const;
/** `gelu` is its tanh form, `none` the identity. */
export const ACTIVATIONS = [...REFERENCE_ACTIVATIONS, 'gelu', 'relu', 'sigmoid', 'none'] as const;
export type Activation = (typeof ACTIVATIONS)[number];

/** The normalised weights W_i/σ, decoded when asked for. */
export interface Targets {
  /** Writes expert i as (p, d) f32, row-major. */
  read(expert: number, target: Float32Array): void;
}

/** What a solver searches for. A is not among them: given B and α it is a linear least-squares fit (refit.ts). */
export interface SharedFactors {
  /** B: (m, r, d) f32, row-major. */
  readonly bases: Float32Array;
  /** α: (n, m) f32, row-major, as multiplied. */
  readonly coefficients: Float32Array;
}

export interface Solution extends SharedFactors {
  /** Steps done. */
  readonly steps: number;
  /** Mean squared error in units of σ², as the solver last saw it. */
  readonly loss: number;
  /** How it fell. */
  readonly losses: readonly LossPoint[];
}

export interface SolverOptions {
  /** Most steps to take; varpro takes fewer when the loss has stopped falling. */
  readonly steps: number;
  /** Undefined: the solver's own choice. */
  readonly learningRate: number | undefined;
  /** Experts per batch; bounds a step's working set. Changes the result slightly: each batch tracks its inverses alone. */
  readonly batchExperts: number;
  /** Keep the decoded targets (n·p·d f32) for the whole fit; otherwise each step decodes them again. */
  readonly holdTargets: boolean;
  readonly seed: number;
  /** Names the group in errors. */
  readonly label: string;
  /** Called at every step, before its update. */
  readonly onStep?: (step: SolverStep) => void;
  /** Where the fit can go on from, and is told how far it is. It makes no difference to the result. */
  readonly states?: StateStore | undefined;
}

/** All that a solver's next steps are computed from: arrays that are saved and come back bit by bit. */
export type SolverState = Readonly<Record<string, Float32Array | Float64Array>>;

export interface StateStore {
  /** The last state that was saved of this very fit. */
  load(): Promise<SolverState | undefined>;
  /** It is time to save. `bytes` is how large a state is. */
  due(bytes: number): boolean;
  /** Resolves when the arrays may change again. */
  save(state: SolverState): Promise<void>;
}

export interface SolverStep {
  /** Counted from 1. */
  readonly step: number;
  /** How many it will be, as things stand. */
  readonly steps: number;
  /** Mean squared error in units of σ². */
  readonly loss: number;
  /** The learning rate of this step. */
  readonly rate: number;
  /** Seconds to the end of the last step, by the pace so far. */
  readonly secondsLeft: number;
}

/** Reports steps with the time they take. */
export function stepReporter(onStep: SolverOptions['onStep']): (step: Omit<SolverStep, 'secondsLeft'>) => void {
  if (!onStep) return () => {};
  const began = performance.now();
  let first: number | undefined; // not 1 where a fit goes on from a saved state
  return (it) => {
    first ??= it.step;
    const pace = (performance.now() - began) / 1000 / Math.max(1, it.step - first);
    onStep({ ...it, secondsLeft: it.step > first ? pace * (it.steps - it.step + 1) : Number.NaN });
  };
}

export const SOLVERS = ['varpro', 'adam'] as const;
export type SolverName = (typeof SOLVERS)[number];

/** Parameters of the factors: n·p·r + m·r·d + n·m. */
export const factorParameters = ({ experts, rows, cols, bases, rank }: Omit<Problem, 'activation'>): number =>
  experts * rows * rank + bases * rank * cols + experts * bases;

/** Parameters of the dense weights: n·p·d. */
export const denseParameters = ({ experts, rows, cols }: Pick<Problem, 'experts' | 'rows' | 'cols'>): number =>
  experts * rows * cols;
