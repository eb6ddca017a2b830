/**
 * The reference's solver (train.py of the public MoBE repository): Adam with a constant rate on A, B and the logits w together,
 * where α = softmax(w), on all experts at each step. It starts from a truncated SVD of consecutive blocks of experts, and keeps
 * the best of the states at every 200th step. If the experts do not divide evenly among the bases, blocks differ in size; no
 * expert is dropped.
 */
import type { Engine, EngineTensor, Program } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import {
  add,
  div,
  elements,
  matmul,
  mul,
  reshape,
  softmax,
  sqrt,
  square,
  sub,
  sum,
  type Value,
} from '../../engine/ops.js';
import { DivergedError, OptionError } from '../../errors.js';
import { roundToHalf } from '../../linalg/half.js';
import { LossCurve } from '../loss-curve.js';
import type { Targets } from '../method.js';
import { activateWithDerivative } from './activation.js';
import { type BatchRange, StackedExperts, solverBatches } from './batches.js';
import { type Problem, type Solution, type SolverOptions, stepReporter } from './problem.js';
import { halfPrecision, startingFactors } from './reference-start.js';

const DEFAULT_RATE = 0.07;
const BETA1 = 0.9;
const BETA2 = 0.999;
const EPSILON = 1e-8;
const KEEP_EVERY = 200;

/** A parameter and its two moments. The moments are plain sums: each is divided by its 1 − β. */
interface Moving<Tensor> {
  readonly value: Tensor;
  readonly mean: Tensor;
  readonly variance: Tensor;
}

/** The experts that a program updates together. The last batch of a step also updates the shared bases. */
interface Batch extends BatchRange {
  readonly program: Program;
  readonly isLast: boolean;
  A: Moving<EngineTensor>;
  w: Moving<EngineTensor>;
}

/**
 * Fits B and α. Throws `OptionError` if the targets have a metric, which the reference does not know, and `DivergedError`.
 * @param sigma the group's σ: the reference starts A from the SVD of the weights without dividing them by σ, while it fits W/σ
 */
export async function solveAdam(
  engine: Engine,
  problem: Problem,
  targets: Targets,
  options: SolverOptions,
  sigma: number,
): Promise<Solution> {
  if (targets.metric)
    throw new OptionError(
      '--solver',
      'adam is the solver of the reference and has no metric. Use varpro, or fit without one',
    );
  const { experts: n, bases: m, rank: r, cols: d, rows: p } = problem;
  const report = stepReporter(options.onStep);
  const rate = options.learningRate ?? DEFAULT_RATE;
  let saved = await options.states?.load();
  const start = saved ? undefined : startingFactors(problem, halfPrecision(targets, sigma, 1));
  /** The saved parameter of this name, or a new one that starts at `values`. */
  const moving = (name: string, shape: number[], values?: Float32Array): Moving<EngineTensor> => {
    const tensor = (key: string, initial?: Float32Array): EngineTensor =>
      engine.tensor((saved?.[key] as Float32Array) ?? initial ?? new Float32Array(elements(shape)), shape);
    return { value: tensor(name, values), mean: tensor(`${name}.mean`), variance: tensor(`${name}.variance`) };
  };

  const fitted = halfPrecision(targets, sigma, roundToHalf(Float32Array.of(sigma))[0] as number);
  const stacked = new StackedExperts(engine, fitted, [p, d], options.holdTargets);
  const programs = new Map<string, Program>();
  const batches: Batch[] = [];
  for (const { first, count } of solverBatches(engine, problem, options.batchExperts)) {
    const isLast = first + count === n;
    const key = `${count} ${isLast}`;
    const program = programs.get(key) ?? (await engine.compile(traceStep(problem, count, isLast)));
    programs.set(key, program);
    const rows = (values: Float32Array | undefined, size: number) =>
      values?.slice(first * size, (first + count) * size);
    batches.push({
      first,
      count,
      program,
      isLast,
      A: moving(`A${first}`, [count, p, r], rows(start?.A, p * r)),
      w: moving(`w${first}`, [count, m], rows(start?.logits, m)),
    });
  }
  const zeroB = engine.tensor(new Float32Array(m * r * d), [m, r * d]);
  let B = moving('B', [m, r * d], start?.B);
  let best: { loss: number; bases: Float32Array; logits: Float32Array } | undefined;
  const [done = 0, bestLoss = 0] = saved?.progress ?? [];
  const curve = new LossCurve(options.steps, saved?.losses);
  if (saved?.bases) best = { loss: bestLoss, bases: saved.bases as Float32Array, logits: saved.logits as Float32Array };
  saved = undefined; // otherwise `moving` would keep it in memory for the whole run

  const keep = async (loss: number): Promise<void> => {
    if (best && best.loss <= loss) return;
    const logits = new Float32Array(n * m);
    for (const { first, w } of batches) logits.set(await engine.read(w.value), first * m);
    best = { loss, bases: (await engine.read(B.value)).slice(), logits };
  };

  /** Saves the state after step `t` and the best state so far. */
  const save = async (t: number): Promise<void> => {
    if (!options.states?.due(4 * (3 * n * p * r + 3 * n * m + 4 * m * r * d + n * m))) return;
    const state: Record<string, Float32Array | Float64Array> = {
      progress: Float64Array.of(t, best?.loss ?? 0),
      losses: curve.state,
    };
    if (best) Object.assign(state, { bases: best.bases, logits: best.logits });
    const parameters = [
      ['B', B] as const,
      ...batches.flatMap(
        ({ first, A, w }) =>
          [
            [`A${first}`, A],
            [`w${first}`, w],
          ] as const,
      ),
    ];
    for (const [name, it] of parameters)
      for (const [key, tensor] of Object.entries(named(name, it))) state[key] = await engine.read(tensor);
    await options.states.save(state);
  };

  try {
    for (let t = done + 1; t <= options.steps; t++) {
      const scalar = (value: number): EngineTensor => engine.tensor(Float32Array.of(value), [1]);
      const { scale, epsilon } = stepSize(problem, rate, t);
      const constants = { scale: scalar(scale), epsilon: scalar(epsilon) };
      let dB = zeroB;
      let squared = 0;
      for (const batch of batches) {
        const shared = batch.isLast ? { ...named('B', B) } : { B: B.value };
        const inputs = { ...named('A', batch.A), ...named('w', batch.w), ...shared, W: stacked.get(batch), dB };
        const out = await batch.program.run({ ...inputs, ...constants });
        for (const it of [batch.A, batch.w]) dispose(it);
        batch.A = unnamed('A', out);
        batch.w = unnamed('w', out);
        if (dB !== zeroB) dB.dispose();
        if (batch.isLast) {
          dispose(B);
          B = unnamed('B', out);
        } else {
          dB = out.dB as EngineTensor;
        }
        const part = out.squared as EngineTensor;
        for (const expert of await engine.read(part)) squared += expert;
        part.dispose();
      }
      for (const constant of Object.values(constants)) constant.dispose();
      const loss = squared / (n * p * d);
      if (!Number.isFinite(loss)) throw new DivergedError(options.label, t);
      // The reference does the same: it compares the loss before this step, and keeps the state after it.
      if (t % KEEP_EVERY === 0 || t === options.steps) await keep(loss);
      curve.add(t, loss);
      await save(t);
      report({ step: t, steps: options.steps, loss, rate });
    }
    const { loss, bases, logits } = best as NonNullable<typeof best>; // the last step always keeps a state
    return { bases, coefficients: softmaxRows(logits, n, m), steps: options.steps, loss, losses: curve.points };
  } finally {
    for (const it of [B, ...batches.flatMap(({ A, w }) => [A, w])]) dispose(it);
    stacked.dispose();
    zeroB.dispose();
    for (const program of programs.values()) await program.dispose();
  }
}

const named = <Tensor>(name: string, { value, mean, variance }: Moving<Tensor>): Record<string, Tensor> => ({
  [name]: value,
  [`${name}.mean`]: mean,
  [`${name}.variance`]: variance,
});

const unnamed = <Tensor>(name: string, all: Readonly<Record<string, Tensor>>): Moving<Tensor> => ({
  value: all[name] as Tensor,
  mean: all[`${name}.mean`] as Tensor,
  variance: all[`${name}.variance`] as Tensor,
});

function dispose({ value, mean, variance }: Moving<EngineTensor>): void {
  value.dispose();
  mean.dispose();
  variance.dispose();
}

/**
 * The gradients of a batch and their Adam steps. A and w move at once. B moves when the last batch has added its share of ∂B.
 */
function traceStep(problem: Problem, count: number, isLast: boolean) {
  const { rows: p, cols: d, bases: m, rank: r } = problem;
  const moving = (name: string, shape: number[]) =>
    named(name, { value: shape, mean: shape, variance: shape }) as Record<string, number[]>;
  const shapes = {
    ...moving('A', [count, p, r]),
    ...moving('w', [count, m]),
    ...(isLast ? moving('B', [m, r * d]) : { B: [m, r * d] }),
    W: [count, p, d],
    dB: [m, r * d],
    scale: [1],
    epsilon: [1],
  };
  return trace(shapes, (it: Record<string, Value>) => {
    const { A, B, W, dB: before } = it as { A: Value; B: Value; W: Value; dB: Value };
    const alpha = softmax(it.w as Value);
    const S = reshape(matmul(alpha, B), [count, r, d]);
    const { value: F, derivative } = activateWithDerivative(problem.activation, S);
    const R = sub(matmul(A, F), W);
    const D = reshape(mul(matmul(A, R, { transposeA: true }), derivative), [count, r * d]);
    const dAlpha = matmul(D, B, { transposeB: true });
    const dA = matmul(R, F, { transposeB: true });
    const dB = add(before, matmul(alpha, D, { transposeA: true }));
    // softmax′: α ∘ (dα − ⟨α, dα⟩)
    const dw = mul(alpha, sub(dAlpha, sum(mul(alpha, dAlpha), [1])));
    const moved = (name: string, gradient: Value) => named(name, adam(unnamed(name, it), gradient, it));
    return {
      ...moved('A', dA),
      ...moved('w', dw),
      ...(isLast ? moved('B', dB) : { dB }),
      squared: sum(square(R), [1, 2]),
    };
  });
}

/**
 * Adam (Kingma & Ba 2015) as torch.optim.Adam computes it. The gradients' common factor 2/N, the moments' 1 − β and the bias
 * corrections are all gathered in two scalars (`stepSize`). Apart from ε, the step does not depend on them.
 */
function adam(it: Moving<Value>, gradient: Value, constants: Record<string, Value>): Moving<Value> {
  const mean = add(mul(it.mean, BETA1), gradient);
  const variance = add(mul(it.variance, BETA2), square(gradient));
  const root = add(sqrt(variance), constants.epsilon as Value);
  return { value: sub(it.value, div(mul(mean, constants.scale as Value), root)), mean, variance };
}

function stepSize({ experts: n, rows: p, cols: d }: Problem, rate: number, t: number) {
  // value −= rate · (1−β₁)·mean/(1−β₁ᵗ) · s / (√((1−β₂)·variance/(1−β₂ᵗ)) · s + ε), s = 2/N
  const root = Math.sqrt((1 - BETA2) / (1 - BETA2 ** t));
  const factor = 2 / (n * p * d);
  return { scale: (rate * (1 - BETA1)) / (1 - BETA1 ** t) / root, epsilon: EPSILON / (factor * root) };
}

function softmaxRows(logits: Float32Array, n: number, m: number): Float32Array {
  const alpha = new Float32Array(n * m);
  for (let i = 0; i < n; i++) {
    const row = logits.subarray(i * m, (i + 1) * m);
    const top = row.reduce((a, b) => Math.max(a, b));
    const exps = Array.from(row, (x) => Math.exp(x - top));
    const sum = exps.reduce((a, b) => a + b);
    for (let j = 0; j < m; j++) alpha[i * m + j] = (exps[j] as number) / sum;
  }
  return alpha;
}
