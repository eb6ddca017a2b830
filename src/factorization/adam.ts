/**
 * The reference's solver: Adam at a constant rate on A, B and the logits w together, α = softmax(w), full batch, from a
 * truncated SVD of consecutive blocks of experts, keeping the best state seen at every 200th step (train.py of the
 * public MoBE repository). Experts that do not divide evenly among the bases are spread, not dropped.
 */
import type { Engine, EngineTensor, Program } from '../engine/engine.js';
import { trace } from '../engine/graph.js';
import { add, div, matmul, mul, reshape, softmax, sqrt, square, sub, sum, total } from '../engine/ops.js';
import { DivergedError } from '../errors.js';
import { activate, derivative } from './activation.js';
import { type BatchRange, StackedTargets, solverBatches } from './batches.js';
import type { Problem, Solution, SolverOptions, Targets } from './problem.js';
import { truncatedSvd } from './svd.js';

const DEFAULT_RATE = 0.07;
const BETA1 = 0.9;
const BETA2 = 0.999;
const EPSILON = 1e-8;
const KEEP_EVERY = 200;

/** A parameter with its two moments. */
interface Moving {
  readonly value: EngineTensor;
  readonly mean: EngineTensor;
  readonly variance: EngineTensor;
}

interface Batch extends BatchRange {
  readonly gradient: Program;
  readonly update: Program;
  A: Moving;
}

/**
 * @param sigma the group's σ: the reference starts A from the SVD of the weights as they are, while it fits W/σ.
 */
export async function solveAdam(
  engine: Engine,
  problem: Problem,
  targets: Targets,
  options: SolverOptions,
  sigma: number,
): Promise<Solution> {
  const { experts: n, bases: m, rank: r, cols: d, rows: p } = problem;
  const rate = options.learningRate ?? DEFAULT_RATE;
  const start = startingFactors(problem, targets, sigma);
  const programs = new Map<string, Program>();
  const compiled = async (key: string, build: () => Parameters<Engine['compile']>[0]): Promise<Program> => {
    const known = programs.get(key);
    if (known) return known;
    const program = await engine.compile(build());
    programs.set(key, program);
    return program;
  };
  const moving = (values: Float32Array, shape: number[]): Moving => ({
    value: engine.tensor(values, shape),
    mean: engine.tensor(new Float32Array(values.length), shape),
    variance: engine.tensor(new Float32Array(values.length), shape),
  });

  const stacked = new StackedTargets(engine, problem, targets, options.holdTargets);
  const batches: Batch[] = [];
  for (const { first, count } of solverBatches(engine, problem, options.batchExperts)) {
    batches.push({
      first,
      count,
      gradient: await compiled(`gradient ${count}`, () => traceGradient(problem, count)),
      update: await compiled(`A ${count}`, () => traceAdam([count, p, r])),
      A: moving(start.A.slice(first * p * r, (first + count) * p * r), [count, p, r]),
    });
  }
  const updateB = await compiled('B', () => traceAdam([m, r * d]));
  const updateW = await compiled('w', () => traceAdam([n, m]));
  const zeroB = engine.tensor(new Float32Array(m * r * d), [m, r * d]);
  let B = moving(start.B, [m, r * d]);
  let w = moving(start.logits, [n, m]);
  let best: { loss: number; bases: Float32Array; logits: Float32Array } | undefined;

  const keep = async (loss: number): Promise<void> => {
    if (best && best.loss <= loss) return;
    best = { loss, bases: (await engine.read(B.value)).slice(), logits: (await engine.read(w.value)).slice() };
  };
  const step = async (program: Program, it: Moving, gradient: EngineTensor, t: number): Promise<Moving> => {
    const scalar = (value: number): EngineTensor => engine.tensor(Float32Array.of(value), [1]);
    const out = await program.run({
      ...it,
      gradient,
      rate: scalar(rate / (1 - BETA1 ** t)),
      correction: scalar(1 / (1 - BETA2 ** t)),
    });
    disposeMoving(it);
    gradient.dispose();
    return out as unknown as Moving;
  };

  try {
    for (let t = 1; ; t++) {
      const logits = (await engine.read(w.value)).slice();
      const logitGradient = new Float32Array(n * m);
      const gradientsA: EngineTensor[] = [];
      let dB = zeroB;
      let squared = 0;
      for (const batch of batches) {
        const { first, count } = batch;
        const W = stacked.get(batch);
        const out = await batch.gradient.run({
          A: batch.A.value,
          B: B.value,
          w: engine.tensor(logits.slice(first * m, (first + count) * m), [count, m]),
          W,
          dB0: dB,
        });
        if (dB !== zeroB) dB.dispose();
        dB = out.dB as EngineTensor;
        gradientsA.push(out.dA as EngineTensor);
        logitGradient.set(await engine.read(out.dw as EngineTensor), first * m);
        squared += (await engine.read(out.squared as EngineTensor))[0] as number;
        out.dw?.dispose();
        out.squared?.dispose();
      }
      const loss = squared / (n * p * d);
      if (!Number.isFinite(loss)) throw new DivergedError(options.label, t);
      const finished = t > options.steps;
      if (finished || t % KEEP_EVERY === 0) await keep(loss);
      if (finished) {
        for (const gradient of [...gradientsA, dB]) gradient.dispose();
        break;
      }
      options.onStep?.(t, loss);
      for (const [i, batch] of batches.entries())
        batch.A = await step(batch.update, batch.A, gradientsA[i] as EngineTensor, t);
      B = await step(updateB, B, dB, t);
      w = await step(updateW, w, engine.tensor(logitGradient, [n, m]), t);
    }
    const { loss, bases, logits } = best as NonNullable<typeof best>;
    return { bases, coefficients: softmaxRows(logits, n, m), steps: options.steps, loss };
  } finally {
    for (const it of [B, w, ...batches.map(({ A }) => A)]) disposeMoving(it);
    stacked.dispose();
    zeroB.dispose();
    for (const program of programs.values()) await program.dispose();
  }
}

function disposeMoving({ value, mean, variance }: Moving): void {
  value.dispose();
  mean.dispose();
  variance.dispose();
}

function traceGradient(problem: Problem, count: number) {
  const { rows: p, cols: d, bases: m, rank: r, experts: n } = problem;
  const shapes = { A: [count, p, r], B: [m, r * d], w: [count, m], W: [count, p, d], dB0: [m, r * d] };
  return trace(shapes, ({ A, B, w, W, dB0 }) => {
    const alpha = softmax(w);
    const S = reshape(matmul(alpha, B), [count, r, d]);
    const F = activate(problem.activation, S);
    const R = sub(matmul(A, F), W);
    const scaled = mul(R, 2 / (n * p * d));
    const D = reshape(mul(matmul(A, scaled, { transposeA: true }), derivative(problem.activation, S, F)), [
      count,
      r * d,
    ]);
    const dAlpha = matmul(D, B, { transposeB: true });
    // softmax′: α ∘ (dα − ⟨α, dα⟩)
    return {
      squared: total(square(R)),
      dA: matmul(scaled, F, { transposeB: true }),
      dB: add(dB0, matmul(alpha, D, { transposeA: true })),
      dw: mul(alpha, sub(dAlpha, sum(mul(alpha, dAlpha), [1]))),
    };
  });
}

/** Adam (Kingma & Ba 2015) as torch.optim.Adam computes it: the bias corrections outside, ε after the root. */
function traceAdam(shape: number[]) {
  const shapes = { value: shape, mean: shape, variance: shape, gradient: shape, rate: [1], correction: [1] };
  return trace(shapes, (it) => {
    const mean = add(mul(it.mean, BETA1), mul(it.gradient, 1 - BETA1));
    const variance = add(mul(it.variance, BETA2), mul(square(it.gradient), 1 - BETA2));
    const scale = add(sqrt(mul(variance, it.correction)), EPSILON);
    return { value: sub(it.value, mul(it.rate, div(mean, scale))), mean, variance };
  });
}

interface StartingFactors {
  A: Float32Array;
  B: Float32Array;
  logits: Float32Array;
}

/** Block j of the experts, stacked: its right singular vectors are B_j, its left ones times S their A. */
function startingFactors(problem: Problem, targets: Targets, sigma: number): StartingFactors {
  const { experts: n, bases: m, rank: r, cols: d, rows: p } = problem;
  const A = new Float32Array(n * p * r);
  const B = new Float32Array(m * r * d);
  const logits = new Float32Array(n * m);
  for (let j = 0; j < m; j++) {
    // With more bases than experts a block is one expert, and several bases start from it.
    const first = Math.floor((j * n) / m);
    const end = Math.max(first + 1, Math.floor(((j + 1) * n) / m));
    const count = end - first;
    const stacked = new Float32Array(count * p * d);
    for (let e = 0; e < count; e++) targets.read(first + e, stacked.subarray(e * p * d, (e + 1) * p * d));
    for (let i = 0; i < stacked.length; i++) stacked[i] = (stacked[i] as number) * sigma;
    const { left, right } = truncatedSvd(stacked, count * p, d, r);
    A.set(left, first * p * r);
    B.set(right, j * r * d);
    for (let i = first; i < end; i++) logits[i * m + j] = 1;
  }
  return { A, B, logits };
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
