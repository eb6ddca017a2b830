/**
 * Variable projection. Given B and α the best A is linear least squares in closed form, so only B and α are searched,
 * and neither A nor its gradient or moments are ever stored:
 *
 *     F_i = f(Σ_j α_ij B_j)    G_i = F_i F_iᵀ + λI    A_i = W_i F_iᵀ G_i⁻¹    R_i = A_i F_i − W_i
 *     D_i = (2/N)(A_iᵀ R_i) ∘ f′       ∂B_j = Σ_i α_ij D_i       ∂α_ij = ⟨D_i, B_j⟩
 *
 * (the derivative of A drops out: A is at its optimum). B moves by Muon, α by Adam; G⁻¹ is tracked from step to step by
 * Newton–Schulz iteration. docs/solver.md has the measurements behind the constants.
 */
import type { Engine, EngineTensor, Program } from '../engine/engine.js';
import { trace } from '../engine/graph.js';
import { add, div, matmul, mul, reshape, sqrt, square, sub, sum, total, type Value } from '../engine/ops.js';
import { DivergedError } from '../errors.js';
import { activate, derivative } from './activation.js';
import { type BatchRange, StackedTargets, splitBatches } from './batches.js';
import { normals, scrambleRows } from './initialise.js';
import { coldStart, gram, sharpen } from './inverse.js';
import type { Problem, Solution, SolverOptions, Targets } from './problem.js';
import { createRandom } from './random.js';

/** Newton–Schulz steps that carry G⁻¹ from one solver step to the next. */
const TRACKING_STEPS = 2;
/** Above this ‖I − GX‖ after tracking, the inverse is computed afresh. */
const TRACKING_LIMIT = 0.5;
/** Newton–Schulz steps of a fresh inverse, and how often they may be repeated. */
const FRESH_STEPS = 12;
const FRESH_ROUNDS = 4;

/** Muon's quintic, by its authors' coefficients; three rounds suffice here. */
const MUON_ROUNDS = 3;
const MUON_COEFFICIENTS = [3.4445, -4.775, 2.0315] as const;

const FIRST_MOMENTUM = 0.8;
const COEFFICIENT_RATE = 0.12;
const COEFFICIENT_MOMENTUM_LIMIT = 0.95;
const COEFFICIENT_VARIANCE_DECAY = 0.999;

/** A step whose loss is above this multiple of the best so far is undone and taken again at half the size. */
const UNDO_FACTOR = 1.5;
const MAX_UNDOS = 12;

/** Long runs want smaller steps and a longer memory: fitted at 100, 400 and 1000 steps. */
const defaultRate = (steps: number): number => 0.3 * (100 / Math.max(20, steps)) ** 0.55;
const lastMomentum = (steps: number): number => 1 - 0.03 * (100 / Math.max(20, steps)) ** 0.5;

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
  readonly freshInverse: Program;
  readonly sharpenInverse: Program;
}

interface Batch extends BatchRange, Programs {
  /** X ≈ G⁻¹, (count, r, r). */
  inverse: EngineTensor;
}

/** What one step moves, and its moments. */
interface State {
  readonly bases: EngineTensor;
  readonly momentum: EngineTensor;
  readonly coefficients: Float32Array;
  readonly moments: { readonly mean: Float32Array; readonly variance: Float32Array };
}

class VarproSolver {
  private constructor(
    private readonly engine: Engine,
    private readonly problem: Problem,
    private readonly targets: StackedTargets,
    private readonly options: SolverOptions,
    private readonly batches: readonly Batch[],
    private readonly update: Program,
    private readonly zero: EngineTensor,
    private state: State,
  ) {}

  static async create(
    engine: Engine,
    problem: Problem,
    targets: Targets,
    options: SolverOptions,
  ): Promise<VarproSolver> {
    const { experts: n, bases: m, rank: r, cols: d } = problem;
    const sizes = splitBatches(n, options.batchExperts);
    const programs = new Map<number, Programs>();
    for (const { count } of sizes) {
      if (programs.has(count)) continue;
      programs.set(count, {
        gradient: await engine.compile(traceGradient(problem, count)),
        freshInverse: await engine.compile(traceFreshInverse(problem, count)),
        sharpenInverse: await engine.compile(traceSharpenInverse(problem, count)),
      });
    }
    const random = createRandom(options.seed, n);
    const bases = await startingBases(engine, problem, targets, options, normals(m * n, 1 / Math.sqrt(n), random));
    const coefficients = normals(n * m, 1 / Math.sqrt(m), random);
    const shape = [m, r * d];
    const batches: Batch[] = [];
    for (const { first, count } of sizes) {
      const inverse = engine.tensor(new Float32Array(0), [0]);
      batches.push({ first, count, inverse, ...(programs.get(count) as Programs) });
    }
    const update = await engine.compile(traceUpdate(problem));
    const zeros = (): EngineTensor => engine.tensor(new Float32Array(m * r * d), shape);
    const stacked = new StackedTargets(engine, problem, targets, options.holdTargets);
    const moments = { mean: new Float32Array(n * m), variance: new Float32Array(n * m) };
    const state: State = { bases, momentum: zeros(), coefficients, moments };
    const solver = new VarproSolver(engine, problem, stacked, options, batches, update, zeros(), state);
    for (const batch of batches) await solver.refreshInverse(batch);
    return solver;
  }

  async solve(): Promise<Solution> {
    const { steps } = this.options;
    const rate = this.options.learningRate ?? defaultRate(steps);
    const momentumDecay = Math.log((1 - lastMomentum(steps)) / (1 - FIRST_MOMENTUM));
    let scale = 1;
    let undos = 0;
    let meanBias = 1;
    let best = Number.POSITIVE_INFINITY;
    let previous: State | undefined;
    let loss = Number.POSITIVE_INFINITY;
    for (let step = 0; step < steps; ) {
      const gradient = await this.gradient();
      // A is optimal for whatever B is, so the loss can only jump where the step or the inverse went wrong.
      if (!(gradient.loss <= UNDO_FACTOR * best)) {
        gradient.bases.dispose();
        if (!previous || ++undos > MAX_UNDOS) throw new DivergedError(this.options.label, step);
        this.replaceState(previous);
        previous = undefined;
        scale /= 2;
        for (const batch of this.batches) await this.refreshInverse(batch);
        continue;
      }
      loss = gradient.loss;
      best = Math.min(best, loss);
      this.options.onStep?.(step + 1, loss);
      const momentum = 1 - (1 - FIRST_MOMENTUM) * Math.exp((momentumDecay * step) / Math.max(1, steps - 1));
      const decay = scale * (1 - step / steps);
      const coefficientMomentum = Math.min(momentum, COEFFICIENT_MOMENTUM_LIMIT);
      meanBias *= coefficientMomentum;
      const next: State = {
        ...(await this.moveBases(gradient.bases, rate * decay, momentum)),
        ...moveCoefficients(this.state, gradient.coefficients, {
          rate: COEFFICIENT_RATE * decay,
          momentum: coefficientMomentum,
          meanCorrection: 1 / (1 - meanBias),
          varianceCorrection: 1 / (1 - COEFFICIENT_VARIANCE_DECAY ** (step + 1)),
        }),
      };
      gradient.bases.dispose();
      if (previous) disposeState(previous);
      previous = this.state;
      this.state = next;
      step++;
    }
    // The last update was never looked at: keep it only if it holds up.
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
      steps,
      loss,
    };
  }

  /** Loss and gradients at the current state, summed over the batches. */
  private async gradient(): Promise<{ loss: number; bases: EngineTensor; coefficients: Float32Array }> {
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
    const W = this.targets.get(batch);
    for (let attempt = 0; ; attempt++) {
      const alpha = this.batchCoefficients(batch);
      const out = await batch.gradient.run({ B: this.state.bases, alpha, X: batch.inverse, W, dB0: accumulated });
      const residual = Math.sqrt((await this.take(out.residual as EngineTensor))[0] as number);
      if (residual < TRACKING_LIMIT || attempt > 0) {
        batch.inverse.dispose();
        batch.inverse = out.X as EngineTensor;
        return out;
      }
      for (const tensor of [out.X, out.dB, out.dAlpha, out.squared]) tensor?.dispose();
      await this.refreshInverse(batch);
    }
  }

  private async refreshInverse(batch: Batch): Promise<void> {
    const alpha = this.batchCoefficients(batch);
    let out = await batch.freshInverse.run({ B: this.state.bases, alpha });
    for (let round = 1; ; round++) {
      batch.inverse.dispose();
      batch.inverse = out.X as EngineTensor;
      const residual = Math.sqrt((await this.take(out.residual as EngineTensor))[0] as number);
      if (residual < TRACKING_LIMIT || round === FRESH_ROUNDS) return;
      out = await batch.sharpenInverse.run({ B: this.state.bases, alpha, X: batch.inverse });
    }
  }

  private async moveBases(
    gradient: EngineTensor,
    rate: number,
    momentum: number,
  ): Promise<Pick<State, 'bases' | 'momentum'>> {
    const { rank, cols } = this.problem;
    const scalar = (value: number): EngineTensor => this.engine.tensor(Float32Array.of(value), [1]);
    const out = await this.update.run({
      B: this.state.bases,
      M: this.state.momentum,
      dB: gradient,
      momentum: scalar(momentum),
      // An orthogonal update has entries of 1/√max(r, d); this makes them rate/2, in units of σ.
      step: scalar(0.5 * rate * Math.sqrt(Math.max(rank, cols))),
    });
    return { bases: out.B as EngineTensor, momentum: out.M as EngineTensor };
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
    this.targets.dispose();
    const programs = new Set<Program>([this.update]);
    for (const batch of this.batches) {
      batch.inverse.dispose();
      for (const program of [batch.gradient, batch.freshInverse, batch.sharpenInverse]) programs.add(program);
    }
    for (const program of programs) await program.dispose();
  }
}

function disposeState(state: State): void {
  state.bases.dispose();
  state.momentum.dispose();
}

/** f(α·B): (count, r, d), from α (count, m) and B (m, r·d). Also returns the argument of f. */
function mixBases(problem: Problem, B: Value, alpha: Value): { S: Value; F: Value } {
  const S = reshape(matmul(alpha, B), [alpha.shape[0] as number, problem.rank, problem.cols]);
  return { S, F: activate(problem.activation, S) };
}

function traceGradient(problem: Problem, count: number) {
  const { rows: p, cols: d, bases: m, rank: r, experts: n } = problem;
  const shapes = { B: [m, r * d], alpha: [count, m], X: [count, r, r], W: [count, p, d], dB0: [m, r * d] };
  return trace(shapes, ({ B, alpha, X: X0, W, dB0 }) => {
    const { S, F } = mixBases(problem, B, alpha);
    const { X, residual } = sharpen(gram(F), X0, TRACKING_STEPS);
    const A = matmul(matmul(W, F, { transposeB: true }), X);
    const R = sub(matmul(A, F), W);
    const scaled = mul(matmul(A, R, { transposeA: true }), 2 / (n * p * d));
    const D = reshape(mul(scaled, derivative(problem.activation, S, F)), [count, r * d]);
    return {
      X,
      residual,
      squared: total(square(R)),
      dB: add(dB0, matmul(alpha, D, { transposeA: true })),
      dAlpha: matmul(D, B, { transposeB: true }),
    };
  });
}

function traceFreshInverse(problem: Problem, count: number) {
  const { cols: d, bases: m, rank: r } = problem;
  return trace({ B: [m, r * d], alpha: [count, m] }, ({ B, alpha }) => {
    const G = gram(mixBases(problem, B, alpha).F);
    return sharpen(G, coldStart(G), FRESH_STEPS);
  });
}

function traceSharpenInverse(problem: Problem, count: number) {
  const { cols: d, bases: m, rank: r } = problem;
  return trace({ B: [m, r * d], alpha: [count, m], X: [count, r, r] }, ({ B, alpha, X }) =>
    sharpen(gram(mixBases(problem, B, alpha).F), X, FRESH_STEPS),
  );
}

/** Muon (Jordan et al. 2024) with Nesterov momentum: each basis moves by the orthogonalised direction. */
function traceUpdate({ bases: m, rank: r, cols: d }: Problem) {
  const flat = [m, r * d];
  return trace({ B: flat, M: flat, dB: flat, momentum: [1], step: [1] }, ({ B, M: M0, dB, momentum, step }) => {
    const fresh = mul(dB, sub(1, momentum));
    const M = add(mul(M0, momentum), fresh);
    const direction = orthogonalise(reshape(add(mul(M, momentum), fresh), [m, r, d]));
    return { M, B: sub(B, mul(reshape(direction, flat), step)) };
  });
}

/** Newton–Schulz towards the nearest (semi-)orthogonal matrix of each (r, d) slice. */
function orthogonalise(matrices: Value): Value {
  const [linear, cubic, quintic] = MUON_COEFFICIENTS;
  const [, rank, cols] = matrices.shape as [number, number, number];
  let Y = div(matrices, add(sqrt(sum(square(matrices), [1, 2])), 1e-30));
  for (let round = 0; round < MUON_ROUNDS; round++) {
    // The smaller Gram matrix, from whichever side it is.
    const wide = rank <= cols;
    const Q = wide ? matmul(Y, Y, { transposeB: true }) : matmul(Y, Y, { transposeA: true });
    const P = add(mul(Q, cubic), mul(matmul(Q, Q), quintic));
    Y = add(mul(Y, linear), wide ? matmul(P, Y) : matmul(Y, P));
  }
  return Y;
}

async function startingBases(
  engine: Engine,
  problem: Problem,
  targets: Targets,
  { batchExperts, seed }: SolverOptions,
  shares: Float32Array,
): Promise<EngineTensor> {
  const { experts: n, bases: m, rank: r, cols: d } = problem;
  let bases = engine.tensor(new Float32Array(m * r * d), [m, r * d]);
  const programs = new Map<number, Program>();
  for (const { first, count } of splitBatches(n, batchExperts)) {
    let program = programs.get(count);
    if (!program) {
      const graph = trace({ B: [m, r * d], shares: [m, count], Y: [count, r * d] }, (it) => ({
        B: add(it.B, matmul(it.shares, it.Y)),
      }));
      program = await engine.compile(graph);
      programs.set(count, program);
    }
    const part = new Float32Array(m * count);
    for (let j = 0; j < m; j++) part.set(shares.subarray(j * n + first, j * n + first + count), j * count);
    const scrambled = engine.tensor(scrambleRows(problem, targets, first, count, seed), [count, r * d]);
    const { B } = await program.run({ B: bases, shares: engine.tensor(part, [m, count]), Y: scrambled });
    scrambled.dispose();
    bases.dispose();
    bases = B as EngineTensor;
  }
  for (const program of programs.values()) await program.dispose();
  return bases;
}

interface CoefficientStep {
  rate: number;
  momentum: number;
  meanCorrection: number;
  varianceCorrection: number;
}

/** Adam on α. It has n·m entries: too few to be worth a program. */
function moveCoefficients(
  { coefficients, moments }: State,
  gradient: Float32Array,
  { rate, momentum, meanCorrection, varianceCorrection }: CoefficientStep,
): Pick<State, 'coefficients' | 'moments'> {
  const next = new Float32Array(coefficients.length);
  const mean = new Float32Array(coefficients.length);
  const variance = new Float32Array(coefficients.length);
  for (let i = 0; i < next.length; i++) {
    const g = gradient[i] as number;
    mean[i] = momentum * (moments.mean[i] as number) + (1 - momentum) * g;
    variance[i] =
      COEFFICIENT_VARIANCE_DECAY * (moments.variance[i] as number) + (1 - COEFFICIENT_VARIANCE_DECAY) * g * g;
    const scale = Math.sqrt((variance[i] as number) * varianceCorrection) + 1e-30;
    next[i] = (coefficients[i] as number) - (rate * (mean[i] as number) * meanCorrection) / scale;
  }
  return { coefficients: next, moments: { mean, variance } };
}
