/**
 * Variable projection. For given B and α, the best A is a linear least-squares solution in closed form. So only B and α are
 * searched, and A, its gradient and its moments are never stored:
 *
 *     F_i = f(Σ_j α_ij B_j)    G_i = F_i F_iᵀ + λI    A_i = W_i F_iᵀ G_i⁻¹    R_i = A_i F_i − W_i
 *     D_i = (2/N)(A_iᵀ R_i) ∘ f′       ∂B_j = Σ_i α_ij D_i       ∂α_ij = ⟨D_i, B_j⟩
 *
 * The derivative of A is zero here, because A is at its optimum. In a metric, where an expert's error is tr(P R C Rᵀ):
 *
 *     G_i = F_i C_i F_iᵀ + λI    A_i = W_i C_i F_iᵀ G_i⁻¹    D_i = (2/N)(A_iᵀ P_i R_i C_i) ∘ f′
 *
 * B moves by one-sided Shampoo, α by Adam. A is found by elimination of blocks. The inverses of G's leaves are updated from step to
 * step by Newton–Schulz iteration; if there is a C and the engine runs on a CPU, leaves are eliminated too. docs/solver.md has the
 * measurements behind the constants.
 */
import type { Engine } from '../../engine/engine.js';
import { DivergedError } from '../../errors.js';
import { createRandom } from '../../linalg/random.js';
import { LossCurve } from '../loss-curve.js';
import type { FitState, Targets } from '../method.js';
import { basisParts } from './basis-parts.js';
import { leafElements } from './block-solve.js';
import { COEFFICIENT_VARIANCE_DECAY, type Coefficients, moveCoefficients } from './coefficient-step.js';
import { type Gradient, GradientPass, passLengths } from './gradient-pass.js';
import { startingBases, startingCoefficients } from './initialise.js';
import { type BasisStep, basisLengths, MovingBases } from './moving-bases.js';
import { type Problem, type Solution, type SolverOptions, stepReporter } from './problem.js';
import { type Rates, Schedule } from './schedule.js';

/** The rate of α, in units of its root mean square. */
const COEFFICIENT_RATE = 0.3;
const COEFFICIENT_MOMENTUM_LIMIT = 0.95;

/** If a step's loss is above this multiple of the best loss, the step is undone and taken again at half the size. */
const UNDO_FACTOR = 1.5;
const MAX_UNDOS = 12;
/** The share of the targets' mean square. */
const LOSS_FLOOR = 1e-6;

/** Fits B and α. Throws `DivergedError` if the loss grows however small the steps are. */
export async function solveVarpro(
  engine: Engine,
  problem: Problem,
  targets: Targets,
  options: SolverOptions,
): Promise<Solution> {
  const solver = await VarproSolver.create(engine, problem, targets, options);
  try {
    return await solver.solve();
  } finally {
    await solver.dispose();
  }
}

/** The position of a run in its loop: after a gradient was accepted, before the step. */
interface Progress {
  steps: number;
  /** The scale of steps. It is halved when a step is undone. */
  scale: number;
  undos: number;
  meanBias: number;
  best: number;
}

class VarproSolver {
  private constructor(
    private readonly engine: Engine,
    private readonly problem: Problem,
    private readonly options: SolverOptions,
    private readonly pass: GradientPass,
    private readonly bases: MovingBases,
    private coefficients: Coefficients,
    /** The state from which the run resumes. It is freed after that. */
    private saved: FitState | undefined,
  ) {}

  static async create(
    engine: Engine,
    problem: Problem,
    targets: Targets,
    options: SolverOptions,
  ): Promise<VarproSolver> {
    const { experts: n, bases: m } = problem;
    const parts = basisParts(problem, engine, options.limits?.part);
    const pass = await GradientPass.create(engine, problem, targets, options, parts);
    const found = await options.states?.load();
    const lengths = {
      ...{ coefficients: n * m, mean: n * m, variance: n * m, 'gradient coefficients': n * m },
      ...basisLengths(problem, parts),
      ...passLengths(engine, problem, targets, options),
    };
    const saved = found && fits(found, lengths) ? found : undefined;
    const random = createRandom(options.seed, n);
    const start = saved ?? (await startingBases(engine, problem, targets, options, random, parts));
    const bases = await MovingBases.create(engine, problem, parts, start, options.precision);
    const array = (name: string): Float32Array => saved?.[name] as Float32Array;
    const coefficients = saved
      ? { coefficients: array('coefficients'), moments: { mean: array('mean'), variance: array('variance') } }
      : {
          coefficients: startingCoefficients(problem, random),
          moments: { mean: new Float32Array(n * m), variance: new Float32Array(n * m) },
        };
    if (saved) pass.restore(saved);
    else await pass.invert(bases, coefficients.coefficients);
    return new VarproSolver(engine, problem, options, pass, bases, coefficients, saved);
  }

  async solve(): Promise<Solution> {
    const schedule = new Schedule(this.options.steps, this.problem.activation, this.options.learningRate);
    const report = stepReporter(this.options.onStep);
    const curve = new LossCurve(this.options.steps, this.saved?.losses);
    const at: Progress = { steps: 0, scale: 1, undos: 0, meanBias: 1, best: Number.POSITIVE_INFINITY };
    let accepted = this.restore(schedule, at);
    let rates = schedule.rates;
    /** α before the last step. */
    let previous: Float32Array | undefined;
    let loss = Number.POSITIVE_INFINITY;
    while (!schedule.finished) {
      const gradient = accepted ?? (await this.gradient());
      // A is optimal for every B, so the loss jumps only if the step was too large or the inverse is wrong.
      if (!accepted && !(gradient.loss <= Math.max(UNDO_FACTOR * at.best, this.lossFloor))) {
        this.free(gradient);
        if (!previous || ++at.undos > MAX_UNDOS)
          throw new DivergedError(this.options.label, at.steps, this.options.precision);
        at.scale /= 2;
        await this.bases.retake(this.basisStep(rates, at));
        const { coefficients } = this.coefficients;
        this.coefficients = { ...this.coefficients, coefficients: halfway(previous, coefficients) };
        await this.pass.invert(this.bases, this.coefficients.coefficients);
        continue;
      }
      accepted = undefined;
      loss = gradient.loss;
      at.best = Math.min(at.best, loss);
      await this.save(schedule, at, gradient, curve);
      const steps = ++at.steps;
      rates = schedule.rates;
      const decay = at.scale * rates.decay;
      curve.add(steps, loss);
      report({ step: steps, steps: schedule.expectedSteps, loss, rate: rates.rate * decay });
      const momentum = Math.min(rates.momentum, COEFFICIENT_MOMENTUM_LIMIT);
      at.meanBias *= momentum;
      previous = this.coefficients.coefficients;
      await this.bases.move(gradient.bases, this.basisStep(rates, at));
      this.coefficients = moveCoefficients(this.coefficients, gradient.coefficients, {
        rate: COEFFICIENT_RATE * decay,
        momentum,
        meanCorrection: 1 / (1 - at.meanBias),
        varianceCorrection: 1 / (1 - COEFFICIENT_VARIANCE_DECAY ** steps),
      });
      schedule.advance(loss);
    }
    // The loss after the last update is not known yet. The update is kept only if it lowered the loss.
    const final = await this.gradient();
    this.free(final);
    let { coefficients } = this.coefficients;
    if (final.loss <= loss || !previous) loss = final.loss;
    else {
      this.bases.revert();
      coefficients = previous;
    }
    // The result is a copy of the bases, so everything else is freed before.
    await this.pass.dispose();
    await this.bases.finish();
    const bases = (await this.engine.read(this.bases.tensor)).slice();
    return { bases, coefficients, steps: at.steps, loss, losses: curve.points };
  }

  private basisStep({ rate, decay, momentum }: Rates, { scale, steps }: Progress): BasisStep {
    // The entries of an orthogonal update are about 1/√d (r ≤ d). This factor makes them rate/2, in units of σ.
    const size = 0.5 * rate * scale * decay * Math.sqrt(this.problem.cols);
    return { momentum, size, number: steps };
  }

  private free({ bases }: Gradient): void {
    for (const [i, part] of bases.entries()) this.bases.free(part, i);
  }

  /**
   * Saves the state and its gradient. The other inputs of the step follow from these. If the step is undone, the run returns to
   * this state, so no earlier one is needed. The inverses are saved because they were updated step by step and cannot be
   * recomputed exactly.
   */
  private async save(schedule: Schedule, at: Progress, gradient: Gradient, curve: LossCurve): Promise<void> {
    const { states } = this.options;
    const { experts: n, bases: m, rank: r, cols: d } = this.problem;
    if (!states?.due(4 * (3 * m * r * d + m * r * r + n * leafElements(r) + 4 * n * m + d))) return;
    const { coefficients, moments } = this.coefficients;
    const state: Record<string, Float32Array | Float64Array> = {
      progress: Float64Array.of(at.steps, at.scale, at.undos, at.meanBias, at.best, gradient.loss),
      schedule: Float64Array.from(schedule.position),
      losses: curve.state,
      ...(await this.bases.save(gradient.bases)),
      ...(await this.pass.save()),
      coefficients,
      mean: moments.mean,
      variance: moments.variance,
      'gradient coefficients': gradient.coefficients,
    };
    await states.save(state);
  }

  /** Returns to the point of the last `save`. Returns its gradient, or undefined if nothing was saved. */
  private restore(schedule: Schedule, at: Progress): Gradient | undefined {
    const { saved } = this;
    this.saved = undefined;
    if (!saved) return undefined;
    const [steps, scale, undos, meanBias, best, loss] = saved.progress as unknown as [
      number,
      number,
      number,
      number,
      number,
      number,
    ];
    Object.assign(at, { steps, scale, undos, meanBias, best } satisfies Progress);
    schedule.restore([...(saved.schedule as Float64Array)]);
    return {
      loss,
      bases: this.bases.savedGradient(saved),
      coefficients: saved['gradient coefficients'] as Float32Array,
    };
  }

  /** In a metric the loss is a difference, and below this it is rounding noise that may be negative. */
  private get lossFloor(): number {
    return this.pass.hasColumns ? LOSS_FLOOR : Number.NEGATIVE_INFINITY;
  }

  private gradient(): Promise<Gradient> {
    return this.pass.run(this.bases, this.coefficients.coefficients);
  }

  async dispose(): Promise<void> {
    await this.pass.dispose();
    await this.bases.dispose();
  }
}

/**
 * Whether a state has these arrays. Another build of this program may have saved others; its states cannot be gone on with, and the
 * fit begins anew, as it does if a state is damaged.
 */
const fits = (state: FitState, lengths: Readonly<Record<string, number>>): boolean =>
  Object.entries(lengths).every(([name, length]) => state[name]?.length === length);

const halfway = (a: Float32Array, b: Float32Array): Float32Array => a.map((value, i) => (value + (b[i] as number)) / 2);
