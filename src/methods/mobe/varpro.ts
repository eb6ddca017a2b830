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
import type { Engine, EngineTensor, Program } from '../../engine/engine.js';
import { DivergedError } from '../../errors.js';
import { createRandom } from '../../linalg/random.js';
import { LossCurve } from '../loss-curve.js';
import type { FitState, Targets } from '../method.js';
import { type BatchRange, solverBatches } from './batches.js';
import { identityLeaves, leafElements, leafShape } from './block-solve.js';
import { COEFFICIENT_VARIANCE_DECAY, type Coefficients, moveCoefficients } from './coefficient-step.js';
import { turnsOf } from './costs.js';
import { startingBases, startingCoefficients } from './initialise.js';
import { type Problem, type Solution, type SolverOptions, stepReporter } from './problem.js';
import { type Rates, Schedule } from './schedule.js';
import { GRAM_DECAY, traceGradient, traceRestart, traceUpdate } from './varpro-programs.js';
import { WeightedTargets } from './weighted-targets.js';

/** If ‖I − GX‖ of a leaf is above this after tracking, the inverses are computed again. */
const TRACKING_LIMIT = 0.5;
/** The most rounds of a new inverse from one start. */
const FRESH_ROUNDS = 3;

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

interface Programs {
  readonly gradient: Program;
  /** Starts the inverses; undefined if there are none. */
  readonly restart?: Program;
}

interface Batch extends BatchRange, Programs {
  /** The inverses of the leaves of each G, of `leafShape`, from step to step. Undefined if leaves are eliminated. */
  inverse: EngineTensor | undefined;
}

/** The variables that a step moves, and their moments. */
interface State extends Coefficients {
  readonly bases: EngineTensor;
  readonly momentum: EngineTensor;
  /** The average of the momentum's Gram matrices, (m, r, r). */
  readonly gram: EngineTensor;
}

interface Gradient {
  readonly loss: number;
  readonly bases: EngineTensor;
  readonly coefficients: Float32Array;
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
    private readonly targets: WeightedTargets,
    private readonly options: SolverOptions,
    private readonly batches: readonly Batch[],
    private readonly update: Program,
    private readonly zero: EngineTensor,
    /** The scale of each input axis, (1, 1, d). */
    private readonly columns: EngineTensor,
    private state: State,
    /** The state from which the run resumes. It is freed after that. */
    private saved: FitState | undefined,
  ) {}

  static async create(
    engine: Engine,
    problem: Problem,
    targets: Targets,
    options: SolverOptions,
  ): Promise<VarproSolver> {
    const { experts: n, bases: m, rank: r, cols: d } = problem;
    const { metric } = targets;
    const turns = turnsOf(problem, options.batchExperts, metric);
    const sizes = solverBatches(engine, problem, Math.max(turns, options.batchExperts), metric);
    const programs = new Map<number, Programs>();
    const eliminates = metric?.columns !== undefined && engine.kind === 'cpu';
    const form = { eliminates, ridge: options.ridge, inTurn: turns > 1 };
    for (const { count } of sizes) {
      if (programs.has(count)) continue;
      programs.set(count, {
        gradient: await engine.compile(traceGradient(problem, count, metric, form)),
        ...(!eliminates && { restart: await engine.compile(traceRestart(problem, count, metric, form)) }),
      });
    }
    const shape = [m, r * d];
    const zeros = (): EngineTensor => engine.tensor(new Float32Array(m * r * d), shape);
    const saved = await options.states?.load();
    let columns: EngineTensor;
    let state: State;
    if (saved) {
      const array = (name: string): Float32Array => saved[name] as Float32Array;
      columns = engine.tensor(array('columns'), [1, 1, d]);
      state = {
        bases: engine.tensor(array('bases'), shape),
        momentum: engine.tensor(array('momentum'), shape),
        gram: engine.tensor(array('gram'), [m, r, r]),
        coefficients: array('coefficients'),
        moments: { mean: array('mean'), variance: array('variance') },
      };
    } else {
      const random = createRandom(options.seed, n);
      const start = await startingBases(engine, problem, targets, options, random);
      columns = start.columns;
      const coefficients = startingCoefficients(problem, random);
      const moments = { mean: new Float32Array(n * m), variance: new Float32Array(n * m) };
      const gram = engine.tensor(new Float32Array(m * r * r), [m, r, r]);
      state = { bases: start.bases, momentum: zeros(), gram, coefficients, moments };
    }
    const batches: Batch[] = sizes.map(({ first, count }) => {
      const known = saved?.[`inverse ${first}`] as Float32Array | undefined;
      const start = () => engine.tensor(known ?? identityLeaves(count, r), leafShape(count, r));
      const inverse = eliminates ? undefined : start();
      return { first, count, inverse, ...(programs.get(count) as Programs) };
    });
    const update = await engine.compile(traceUpdate(problem));
    const stacked = new WeightedTargets(engine, problem, targets, options.holdTargets);
    const solver = new VarproSolver(engine, problem, stacked, options, batches, update, zeros(), columns, state, saved);
    if (!saved) for (const batch of batches) await solver.invert(batch);
    return solver;
  }

  async solve(): Promise<Solution> {
    const schedule = new Schedule(this.options.steps, this.problem.activation, this.options.learningRate);
    const report = stepReporter(this.options.onStep);
    const curve = new LossCurve(this.options.steps, this.saved?.losses);
    const at: Progress = { steps: 0, scale: 1, undos: 0, meanBias: 1, best: Number.POSITIVE_INFINITY };
    let accepted = this.restore(schedule, at);
    let previous: State | undefined;
    let loss = Number.POSITIVE_INFINITY;
    while (!schedule.finished) {
      const gradient = accepted ?? (await this.gradient());
      // A is optimal for every B, so the loss jumps only if the step was too large or the inverse is wrong.
      if (!accepted && !(gradient.loss <= Math.max(UNDO_FACTOR * at.best, this.lossFloor))) {
        gradient.bases.dispose();
        if (!previous || ++at.undos > MAX_UNDOS) throw new DivergedError(this.options.label, at.steps);
        this.replaceState(previous);
        previous = undefined;
        at.scale /= 2;
        for (const batch of this.batches) await this.invert(batch);
        continue;
      }
      accepted = undefined;
      loss = gradient.loss;
      at.best = Math.min(at.best, loss);
      await this.save(schedule, at, gradient, curve);
      const steps = ++at.steps;
      const rates = schedule.rates;
      const decay = at.scale * rates.decay;
      curve.add(steps, loss);
      report({ step: steps, steps: schedule.expectedSteps, loss, rate: rates.rate * decay });
      const momentum = Math.min(rates.momentum, COEFFICIENT_MOMENTUM_LIMIT);
      at.meanBias *= momentum;
      const next: State = {
        ...(await this.moveBases(gradient.bases, rates, decay, steps)),
        ...moveCoefficients(this.state, gradient.coefficients, {
          rate: COEFFICIENT_RATE * decay,
          momentum,
          meanCorrection: 1 / (1 - at.meanBias),
          varianceCorrection: 1 / (1 - COEFFICIENT_VARIANCE_DECAY ** steps),
        }),
      };
      gradient.bases.dispose();
      if (previous) disposeState(previous);
      previous = this.state;
      this.state = next;
      schedule.advance(loss);
    }
    // The loss after the last update is not known yet. The update is kept only if it lowered the loss.
    const final = await this.gradient();
    final.bases.dispose();
    if (final.loss <= loss || !previous) loss = final.loss;
    else {
      this.replaceState(previous);
      previous = undefined;
    }
    if (previous) disposeState(previous);
    return {
      bases: (await this.engine.read(this.state.bases)).slice(),
      coefficients: this.state.coefficients,
      steps: at.steps,
      loss,
      losses: curve.points,
    };
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
    const { bases, momentum, gram, coefficients, moments } = this.state;
    const state: Record<string, Float32Array | Float64Array> = {
      progress: Float64Array.of(at.steps, at.scale, at.undos, at.meanBias, at.best, gradient.loss),
      schedule: Float64Array.from(schedule.position),
      losses: curve.state,
      columns: await this.engine.read(this.columns),
      bases: await this.engine.read(bases),
      momentum: await this.engine.read(momentum),
      gram: await this.engine.read(gram),
      coefficients,
      mean: moments.mean,
      variance: moments.variance,
      'gradient bases': await this.engine.read(gradient.bases),
      'gradient coefficients': gradient.coefficients,
    };
    for (const { first, inverse } of this.batches)
      if (inverse) state[`inverse ${first}`] = await this.engine.read(inverse);
    await states.save(state);
  }

  /** Returns to the point of the last `save`. Returns its gradient, or undefined if nothing was saved. */
  private restore(schedule: Schedule, at: Progress): Gradient | undefined {
    const { saved } = this;
    this.saved = undefined;
    if (!saved) return undefined;
    const { bases: m, rank: r, cols: d } = this.problem;
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
      bases: this.engine.tensor(saved['gradient bases'] as Float32Array, [m, r * d]),
      coefficients: saved['gradient coefficients'] as Float32Array,
    };
  }

  /** In a metric the loss is a difference, and below this it is rounding noise that may be negative. */
  private get lossFloor(): number {
    return this.targets.hasColumns ? LOSS_FLOOR : Number.NEGATIVE_INFINITY;
  }

  /** The loss and the gradients of the current state, summed over the batches. */
  private async gradient(): Promise<Gradient> {
    const { experts: n, rows, cols, bases: m } = this.problem;
    const coefficients = new Float32Array(n * m);
    let squared = 0;
    let bases = this.zero;
    for (const batch of this.batches) {
      const out = await this.batchGradient(batch, bases);
      if (bases !== this.zero) bases.dispose();
      bases = out.dB as EngineTensor;
      coefficients.set(await this.take(out.dAlpha as EngineTensor), batch.first * m);
      squared += (await this.take(out.squared as EngineTensor))[0] as number;
    }
    return { loss: squared / (n * rows * cols), bases, coefficients };
  }

  private async batchGradient(batch: Batch, accumulated: EngineTensor): Promise<Record<string, EngineTensor>> {
    const weighted = await this.targets.get(batch);
    for (let attempt = 0; ; attempt++) {
      const alpha = this.batchCoefficients(batch);
      const { inverse } = batch;
      const state = { B: this.state.bases, alpha, dB0: accumulated, ...(inverse && { X: inverse }) };
      const out = await batch.gradient.run({ ...state, ...weighted });
      alpha.dispose();
      if (!inverse) return out;
      const residual = Math.sqrt((await this.take(out.residual as EngineTensor))[0] as number);
      if (residual < TRACKING_LIMIT || attempt > 0) {
        inverse.dispose();
        batch.inverse = out.X as EngineTensor;
        return out;
      }
      for (const tensor of [out.X, out.dB, out.dAlpha, out.squared]) tensor?.dispose();
      await this.invert(batch);
    }
  }

  /** Computes the inverses again: from the last ones, or from identities if those do not converge. */
  private async invert(batch: Batch): Promise<void> {
    const { restart } = batch;
    if (!restart || !batch.inverse) return;
    const { count } = batch;
    const { rank } = this.problem;
    const inputs = { B: this.state.bases, alpha: this.batchCoefficients(batch), ...this.targets.getColumns(batch) };
    let residual = Number.POSITIVE_INFINITY;
    for (let round = 0; round < 2 * FRESH_ROUNDS && !(residual < TRACKING_LIMIT); round++) {
      if (round === FRESH_ROUNDS) {
        batch.inverse.dispose();
        batch.inverse = this.engine.tensor(identityLeaves(count, rank), leafShape(count, rank));
      }
      const out = await restart.run({ ...inputs, X: batch.inverse });
      batch.inverse.dispose();
      batch.inverse = out.X as EngineTensor;
      residual = Math.sqrt((await this.take(out.residual as EngineTensor))[0] as number);
    }
    inputs.alpha.dispose();
  }

  private async moveBases(
    gradient: EngineTensor,
    { rate, momentum }: Rates,
    decay: number,
    step: number,
  ): Promise<Pick<State, 'bases' | 'momentum' | 'gram'>> {
    const scalar = (value: number): EngineTensor => this.engine.tensor(Float32Array.of(value), [1]);
    const scalars = {
      momentum: scalar(momentum),
      // The entries of an orthogonal update are about 1/√d (r ≤ d). This factor makes them rate/2, in units of σ.
      step: scalar(0.5 * rate * decay * Math.sqrt(this.problem.cols)),
      correction: scalar(1 - GRAM_DECAY ** step),
    };
    const { bases, momentum: M, gram: Q } = this.state;
    const out = await this.update.run({ B: bases, M, Q, dB: gradient, columns: this.columns, ...scalars });
    for (const tensor of Object.values(scalars)) tensor.dispose();
    return { bases: out.B as EngineTensor, momentum: out.M as EngineTensor, gram: out.Q as EngineTensor };
  }

  private batchCoefficients({ first, count }: Batch): EngineTensor {
    const m = this.problem.bases;
    return this.engine.tensor(this.state.coefficients.slice(first * m, (first + count) * m), [count, m]);
  }

  /** Reads a small result and frees it. */
  private async take(tensor: EngineTensor): Promise<Float32Array> {
    const values = (await this.engine.read(tensor)).slice();
    tensor.dispose();
    return values;
  }

  private replaceState(state: State): void {
    disposeState(this.state);
    this.state = state;
  }

  async dispose(): Promise<void> {
    disposeState(this.state);
    this.zero.dispose();
    this.columns.dispose();
    await this.targets.dispose();
    const programs = new Set<Program>([this.update]);
    for (const batch of this.batches) {
      batch.inverse?.dispose();
      for (const program of [batch.gradient, batch.restart]) if (program) programs.add(program);
    }
    for (const program of programs) await program.dispose();
  }
}

function disposeState(state: State): void {
  state.bases.dispose();
  state.momentum.dispose();
  state.gram.dispose();
}
