import { z } from 'zod';
import type { LossPoint } from '../loss-curve.js';
import type { FitOptions, FitStep, GroupShape, StoredFactors } from '../method.js';
import { storedParameters } from '../sizes.js';

/**
 * One group to factorise: W_i/σ ≈ A_i · f(Σ_j α_ij B_j) for n experts W_i (p×d), with A_i (p×r) of its own for each
 * expert and m bases B_j (r×d) shared by all (arXiv 2508.05257, eq. 3–5).
 */
export interface Problem extends GroupShape {
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

const size = z
  .int()
  .positive()
  .max(2 ** 24);
export const problemSchema = z.strictObject({
  experts: size,
  rows: size,
  cols: size,
  bases: size,
  rank: size,
  activation: z.enum(ACTIVATIONS),
});

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
  /** As in `FitStep`, as the solver last saw it. */
  readonly loss: number;
  /** How it fell. */
  readonly losses: readonly LossPoint[];
}

export type SolverOptions = Omit<FitOptions, 'solver' | 'sigma'>;

/** Reports steps with the time they take. */
export function stepReporter(onStep: SolverOptions['onStep']): (step: Omit<FitStep, 'secondsLeft'>) => void {
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

type Sizes = Omit<Problem, 'activation'>;

/** B (m, r, d) and α (n, m), and A (p, r) of each expert. */
export const stores = ({ experts: n, rows: p, cols: d, bases: m, rank: r }: Sizes): StoredFactors => ({
  shared: [
    { name: 'B', shape: [m, r, d] },
    { name: 'alpha', shape: [n, m] },
  ],
  byExpert: [{ name: 'A', shape: [p, r] }],
});

/** Parameters of MoBE's factors: n·p·r + m·r·d + n·m. */
export const factorParameters = (sizes: Sizes): number => storedParameters(stores(sizes), sizes.experts);
