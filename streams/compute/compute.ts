/**
 * The arithmetic of one group, as it runs in a worker thread: fit B and α, then hand out expert by expert what will be
 * written, with the error of exactly those bytes.
 */
import { encodeFinite, floatsOf } from '../../src/checkpoint/codec.js';
import type { FloatDtype } from '../../src/checkpoint/dtype.js';
import { decodeMatrix, type MatrixFormat, transpose } from '../../src/checkpoint/stored-matrix.js';
import { createEngine, type EngineName } from '../../src/engine/create-engine.js';
import type { Engine } from '../../src/engine/engine.js';
import { measureGemmRate, type ProductShape } from '../../src/engine/gemm-rate.js';
import type { LossPoint } from '../../src/methods/loss-curve.js';
import type { Targets } from '../../src/methods/method.js';
import { solveAdam } from '../../src/methods/mobe/adam.js';
import type { Problem, SharedFactors, SolverName, SolverOptions } from '../../src/methods/mobe/problem.js';
import { createReconstruction, type Reconstruction } from '../../src/methods/mobe/reconstruct.js';
import { createRefit, type Refit } from '../../src/methods/mobe/refit.js';
import { solveVarpro } from '../../src/methods/mobe/varpro.js';
import { type StateFile, stateStore } from './state-file.js';

export interface FitTask {
  readonly problem: Problem;
  readonly format: MatrixFormat;
  readonly dtype: FloatDtype;
  /** The dense weights in expert order, as `readMatrix` reads them. */
  readonly experts: ReadonlyArray<Uint8Array<ArrayBuffer>>;
  readonly sigma: number;
  readonly solver: SolverName;
  readonly options: Omit<SolverOptions, 'onStep' | 'states'>;
  /** Where the fit saves its state and goes on from it. */
  readonly state?: StateFile | undefined;
}

/** What a fit tells, and is told, while it runs. */
export interface FitHooks {
  readonly onStep?: SolverOptions['onStep'];
  readonly stopping?: () => boolean;
}

export interface FitResult {
  readonly bases: Uint8Array<ArrayBuffer>;
  readonly coefficients: Uint8Array<ArrayBuffer>;
  readonly steps: number;
  readonly losses: readonly LossPoint[];
  readonly seconds: number;
}

export interface FactorsTask {
  readonly problem: Problem;
  /** The matrices that were factorised are the transposes of the weights. */
  readonly transposed: boolean;
  readonly dtype: FloatDtype;
  readonly bases: Uint8Array;
  readonly coefficients: Uint8Array;
}

export interface SquaredError {
  /** Σ(W − Ŵ)² of what is written, in the weights' own units. */
  readonly squaredError: number;
  /** ΣW² */
  readonly squaredNorm: number;
}

/** One expert's dense weights, as `readMatrix` reads them. */
export interface StoredWeights {
  readonly format: MatrixFormat;
  readonly bytes: Uint8Array;
}

export interface FoldedExpert extends SquaredError {
  readonly data: Uint8Array<ArrayBuffer>;
}

/** `factors`: A·σ is written; `weights`: the rebuilt Ŵ. */
export type Written = 'factors' | 'weights';

interface Held extends Pick<FactorsTask, 'problem' | 'transposed' | 'dtype'> {
  readonly reconstruction: Reconstruction;
  readonly fit?: { task: FitTask; refit: Refit };
}

export interface ComputeOptions {
  readonly engine: EngineName;
  readonly threads: number;
}

/** Holds at most one group at a time. */
export class Compute {
  private held: Held | undefined;

  private constructor(private readonly engine: Engine) {}

  static async create({ engine, threads }: ComputeOptions): Promise<Compute> {
    return new Compute(await createEngine(engine, { threads }));
  }

  /** Fits a group and keeps it for `fold`. B and α come back rounded to the output dtype. */
  async fit(task: FitTask, { onStep, stopping = () => false }: FitHooks = {}): Promise<FitResult> {
    await this.release();
    const started = performance.now();
    const { problem, dtype, options, solver, sigma, format } = task;
    const targets = decodeTargets(task);
    const states = task.state && stateStore(task.state, stopping);
    const solverOptions = { ...options, ...(onStep && { onStep }), states };
    const solution =
      solver === 'adam'
        ? await solveAdam(this.engine, problem, targets, solverOptions, sigma)
        : await solveVarpro(this.engine, problem, targets, solverOptions);
    const bases = encodeFinite(dtype, solution.bases, `bases of ${options.label}`);
    const coefficients = encodeFinite(dtype, solution.coefficients, `coefficients of ${options.label}`);
    const factors = { problem, dtype, bases, coefficients, transposed: format.transposed };
    await this.load(factors);
    const refit = await createRefit(this.engine, problem, decodeFactors(factors));
    this.held = { ...(this.held as Held), fit: { task, refit } };
    const { steps, losses } = solution;
    return { bases, coefficients, steps, losses, seconds: (performance.now() - started) / 1000 };
  }

  /** What is written for one expert of the fitted group: A refitted to the rounded B and α, σ folded in. */
  async fold(expert: number, written: Written): Promise<FoldedExpert> {
    const { problem, dtype, reconstruction, fit } = this.held as Required<Held>;
    const { task, refit } = fit;
    const dense = { format: task.format, bytes: task.experts[expert] as Uint8Array };
    const label = `${task.options.label}, expert ${expert}`;
    const target = new Float32Array(problem.rows * problem.cols);
    decodeTargets(task).read(expert, target);
    const A = await refit.fit(expert, target);
    for (let i = 0; i < A.length; i++) A[i] = (A[i] as number) * task.sigma;
    const factor = encodeFinite(dtype, A, label);
    if (written === 'weights') return this.rebuild(expert, factor, label, dense);
    const rebuilt = await reconstruction.expert(expert, floatsOf(dtype, factor));
    return { data: factor, ...squaredError(decodeDense(dense), rebuilt) };
  }

  /** Holds finished factors for `rebuild`. */
  async load(task: FactorsTask): Promise<void> {
    await this.release();
    const reconstruction = await createReconstruction(this.engine, task.problem, decodeFactors(task));
    this.held = { ...task, reconstruction };
  }

  /**
   * Ŵ of one expert of the loaded group in the group's dtype, oriented as weights are stored, from its A·σ. With the dense
   * weights it stands for, also the error of what is returned; without, that is 0 of 0.
   */
  async rebuild(expert: number, factor: Uint8Array, label: string, dense?: StoredWeights): Promise<FoldedExpert> {
    const { problem, transposed, dtype, reconstruction } = this.held as Held;
    let rebuilt = await reconstruction.expert(expert, floatsOf(dtype, factor));
    if (transposed) {
      const turned = new Float32Array(rebuilt.length);
      transpose(rebuilt, problem.rows, problem.cols, turned);
      rebuilt = turned;
    }
    const data = encodeFinite(dtype, rebuilt, label);
    return { data, ...squaredError(dense ? decodeAsStored(dense) : new Float32Array(0), floatsOf(dtype, data)) };
  }

  /** The error of one expert of the loaded group, from its A·σ and the dense weights it stands for. */
  async compare(expert: number, factor: Uint8Array, dense: StoredWeights): Promise<SquaredError> {
    const { dtype, reconstruction } = this.held as Held;
    return squaredError(decodeDense(dense), await reconstruction.expert(expert, floatsOf(dtype, factor)));
  }

  /** The error of rebuilt weights as stored. */
  difference(rebuilt: StoredWeights, dense: StoredWeights): Promise<SquaredError> {
    return Promise.resolve(squaredError(decodeAsStored(dense), decodeAsStored(rebuilt)));
  }

  /** Floating-point operations a second at the shapes of a problem. */
  gemmRate({ rows, cols, rank }: ProductShape): Promise<number> {
    return measureGemmRate(this.engine, rows, cols, rank);
  }

  async release(): Promise<void> {
    await this.held?.fit?.refit.dispose();
    await this.held?.reconstruction.dispose();
    this.held = undefined;
  }
}

/** As it is factorised, transposed where that is so. */
function decodeDense({ format, bytes }: StoredWeights): Float32Array {
  const values = new Float32Array(format.rows * format.cols);
  decodeMatrix(format, bytes, values);
  return values;
}

const decodeAsStored = ({ format, bytes }: StoredWeights): Float32Array =>
  decodeDense({ format: { ...format, transposed: false }, bytes });

function decodeTargets({ problem, format, experts, sigma }: FitTask): Targets {
  return {
    read(expert, target) {
      decodeMatrix(format, experts[expert] as Uint8Array, target);
      const size = problem.rows * problem.cols;
      for (let i = 0; i < size; i++) target[i] = (target[i] as number) / sigma;
    },
  };
}

const decodeFactors = ({ dtype, bases, coefficients }: FactorsTask): SharedFactors => ({
  bases: floatsOf(dtype, bases),
  coefficients: floatsOf(dtype, coefficients),
});

/** Summed in f64. */
export function squaredError(weights: Float32Array, rebuilt: Float32Array): SquaredError {
  let error = 0;
  let norm = 0;
  for (let i = 0; i < weights.length; i++) {
    const w = weights[i] as number;
    const difference = w - (rebuilt[i] as number);
    error += difference * difference;
    norm += w * w;
  }
  return { squaredError: error, squaredNorm: norm };
}
