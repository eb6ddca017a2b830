import { z } from 'zod';
import type { LossPoint } from '../loss-curve.js';
import type { FitOptions, FitStep, GroupShape, StoredFactors } from '../method.js';
import { storedParameters } from '../parameters.js';
import { size } from '../size-schema.js';

/**
 * A group to factorise: W_i/σ ≈ A_i · f(Σ_j α_ij B_j) for n experts W_i (p×d). Each expert has its own A_i (p×r), and all share
 * m bases B_j (r×d) (arXiv 2508.05257, eq. 3–5).
 */
export interface Problem extends GroupShape {
  /** m */
  readonly bases: number;
  /** r, at most min(p, d) */
  readonly rank: number;
  readonly activation: Activation;
}

/** The activations of the paper's models. Its scripts know no others. */
export const REFERENCE_ACTIVATIONS = ['silu', 'tanh'] as const;
/** All activations. `gelu` is its tanh form, `none` is the identity. */
export const ACTIVATIONS = [...REFERENCE_ACTIVATIONS, 'gelu', 'relu', 'sigmoid', 'none'] as const;
/** The name of f. */
export type Activation = (typeof ACTIVATIONS)[number];

export const problemSchema = z.strictObject({
  experts: size,
  rows: size,
  cols: size,
  bases: size,
  rank: size,
  activation: z.enum(ACTIVATIONS),
});

/**
 * The factors that a solver searches. A is not among them, because it follows from B and α by linear least squares (refit.ts).
 */
export interface SharedFactors {
  /** B: (m, r, d) f32, row-major. */
  readonly bases: Float32Array;
  /** α (not logits): (n, m) f32, row-major. */
  readonly coefficients: Float32Array;
}

/** The result of a solver. */
export interface Solution extends SharedFactors {
  /** Number of steps taken. */
  readonly steps: number;
  /** The last loss that the solver measured, as in `FitStep`. */
  readonly loss: number;
  /** The loss at some of the steps. */
  readonly losses: readonly LossPoint[];
}

/** The options of a solver. */
export interface SolverOptions extends Omit<FitOptions, 'solver' | 'sigma'> {
  /** Small limits for tests of what only large groups need: of a part of the bases (`basisParts`), and of an expert that is not large (`turnsOf`). */
  readonly limits?: { readonly part: number; readonly expert: number } | undefined;
}

/** Returns a function that reports steps with the expected remaining time. */
export function stepReporter(onStep: SolverOptions['onStep']): (step: Omit<FitStep, 'secondsLeft'>) => void {
  if (!onStep) return () => {};
  const began = performance.now();
  let first: number | undefined; // not 1 if the fit is resumed from a saved state
  return (it) => {
    first ??= it.step;
    const pace = (performance.now() - began) / 1000 / Math.max(1, it.step - first);
    onStep({ ...it, secondsLeft: it.step > first ? pace * (it.steps - it.step + 1) : Number.NaN });
  };
}

export const SOLVERS = ['varpro', 'adam'] as const;
/** The name of a solver of MoBE. */
export type SolverName = (typeof SOLVERS)[number];

/** The sizes of a group and of its factors. */
export type Sizes = Omit<Problem, 'activation'>;

/** The stored factors: B (m, r, d), α (n, m), and A (p, r) of each expert. */
export const stores = ({ experts: n, rows: p, cols: d, bases: m, rank: r }: Sizes): StoredFactors => ({
  shared: [
    { name: 'B', shape: [m, r, d], coded: true },
    { name: 'alpha', shape: [n, m] },
  ],
  byExpert: [{ name: 'A', shape: [p, r], coded: true }],
});

/** The number of parameters of a group's factors: n·p·r + m·r·d + n·m. */
export const factorParameters = (sizes: Sizes): number => storedParameters(stores(sizes), sizes.experts);
