/**
 * The exact A for given B and α, one expert at a time: A = W Fᵀ (F Fᵀ)⁻¹, or A = W C Fᵀ (F C Fᵀ)⁻¹ in a metric. The inverse is
 * found by Newton–Schulz iteration, and iterative refinement removes its remaining error. In a metric of columns a CPU eliminates
 * instead. This runs once, after B and α were rounded to the stored dtype. The metric's P has no influence: P (A F − W) C Fᵀ = 0
 * has the same solution for all P.
 */
import type { Engine, EngineTensor } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { add, elements, identity, matmul, mul, reshape, sub, total, type Value } from '../../engine/ops.js';
import type { Metric } from '../method.js';
import { activate } from './activation.js';
import { solve as eliminate, gram, restart } from './inverse.js';
import { createSharpener, STEPS } from './inverter.js';
import { metricShapes, timesColumns } from './metric.js';
import type { Problem, SharedFactors } from './problem.js';

/** Fits A of single experts to B and α. */
export interface Refit {
  /** A_i for W_i/σ = `target`: (p, r) f32, row-major. */
  fit(expert: number, target: Float32Array): Promise<Float32Array>;
  dispose(): Promise<void>;
}

/** C of each expert as a tensor. */
interface ColumnsOfExperts {
  /** The shape of C; undefined if there is none. */
  readonly shape: readonly number[] | undefined;
  /** Inputs for a program: C of an expert, if there is one. */
  get(expert: number): { C?: EngineTensor };
  /** Frees what `get` gave for one expert. */
  free(inputs: { C?: EngineTensor }): void;
  dispose(): void;
}

function columnsOf(engine: Engine, problem: Problem, metric: Metric | undefined): ColumnsOfExperts {
  const { C: shape } = metricShapes(problem, 1, metric);
  const read = (expert: number): { C?: EngineTensor } => {
    if (!metric?.columns || !shape) return {};
    const known = metric.columns.view?.(expert);
    const values = known ?? new Float32Array(elements(shape));
    if (!known) metric.columns.read(expert, values);
    return { C: engine.tensor(values, shape) };
  };
  // A shared C is read as that of expert 0.
  const shared = metric?.columns?.shared ? read(0) : undefined;
  return {
    shape,
    get: (expert) => shared ?? read(expert),
    free: ({ C }) => {
      if (!shared) C?.dispose();
    },
    dispose: () => shared?.C?.dispose(),
  };
}

/** Prepares A = argmin ‖W/σ − A·f(Σ αB)‖ of single experts, a least-squares fit; with a metric, in its norm. */
export function createRefit(engine: Engine, problem: Problem, factors: SharedFactors, metric?: Metric): Promise<Refit> {
  const columns = columnsOf(engine, problem, metric);
  const eliminates = columns.shape !== undefined && engine.kind === 'cpu';
  return (eliminates ? refitByElimination : refitByIteration)(engine, problem, factors, columns);
}

type CreateRefit = (
  engine: Engine,
  problem: Problem,
  factors: SharedFactors,
  columns: ColumnsOfExperts,
) => Promise<Refit>;

const refitByElimination: CreateRefit = async (engine, problem, { bases, coefficients }, columns) => {
  const { bases: m, rank: r, cols: d, rows: p, activation } = problem;
  const shapes = { B: [m, r * d], alpha: [1, m], W: [1, p, d], C: columns.shape };
  const program = await engine.compile(
    trace(shapes, ({ B, alpha, W, C }) => {
      const F = activate(activation, reshape(matmul(alpha, B), [1, r, d]));
      const FC = timesColumns(F, C);
      return { A: eliminate(gram(F, FC), matmul(W, FC, { transposeB: true })) };
    }),
  );
  const B = engine.tensor(bases, [m, r * d]);
  return {
    async fit(expert, target) {
      const own = columns.get(expert);
      const alpha = engine.tensor(coefficients.slice(expert * m, (expert + 1) * m), [1, m]);
      const W = engine.tensor(target, [1, p, d]);
      const { A } = await program.run({ B, alpha, W, ...own });
      const result = (await engine.read(A as EngineTensor)).slice();
      for (const tensor of [alpha, W, A]) tensor?.dispose();
      columns.free(own);
      return result;
    },
    async dispose() {
      B.dispose();
      columns.dispose();
      await program.dispose();
    },
  };
};

const refitByIteration: CreateRefit = async (engine, problem, { bases, coefficients }, columns) => {
  const { bases: m, rank: r, cols: d, rows: p } = problem;
  const shapeOfC = columns.shape;
  const start = await engine.compile(
    trace({ B: [m, r * d], alpha: [1, m], C: shapeOfC }, ({ B, alpha, C }) => {
      const F = activate(problem.activation, reshape(matmul(alpha, B), [1, r, d]));
      const G = gram(F, timesColumns(F, C));
      return { F, G, ...restart(G, identity(r), STEPS) };
    }),
  );
  const sharpener = await createSharpener(engine, r);
  const solve = await engine.compile(
    trace({ F: [1, r, d], X: [1, r, r], W: [1, p, d], C: shapeOfC }, ({ F, X, W, C }) => {
      const FC = timesColumns(F, C);
      const project = (M: Value): Value => matmul(matmul(M, FC, { transposeB: true }), X);
      const error = (R: Value): Value => total(mul(R, timesColumns(R, C)));
      const A0 = project(W);
      const R0 = sub(W, matmul(A0, F));
      const A1 = add(A0, project(R0));
      const R1 = sub(W, matmul(A1, F));
      const A2 = add(A1, project(R1));
      return { A0, A1, A2, e0: error(R0), e1: error(R1), e2: error(sub(W, matmul(A2, F))) };
    }),
  );
  const B = engine.tensor(bases, [m, r * d]);

  const invert = async (expert: number, own: { C?: EngineTensor }): Promise<{ F: EngineTensor; X: EngineTensor }> => {
    const alpha = engine.tensor(coefficients.slice(expert * m, (expert + 1) * m), [1, m]);
    const { F, G, X, residual } = (await start.run({ B, alpha, ...own })) as Record<
      'F' | 'G' | 'X' | 'residual',
      EngineTensor
    >;
    const inverse = await sharpener.finish(G, { X, residual });
    G.dispose();
    return { F, X: inverse };
  };

  return {
    async fit(expert, target) {
      const own = columns.get(expert);
      const inputs = { ...(await invert(expert, own)), W: engine.tensor(target, [1, p, d]) };
      const out = await solve.run({ ...inputs, ...own });
      // Refinement helps unless the Gram matrix is nearly singular, so the best of three is taken.
      let best = 'A0';
      let least = Number.POSITIVE_INFINITY;
      for (const [name, error] of [
        ['A0', 'e0'],
        ['A1', 'e1'],
        ['A2', 'e2'],
      ] as const) {
        const squared = (await engine.read(out[error] as EngineTensor))[0] as number;
        if (squared < least) [best, least] = [name, squared];
      }
      const result = (await engine.read(out[best] as EngineTensor)).slice();
      for (const tensor of [...Object.values(inputs), ...Object.values(out)]) tensor.dispose();
      columns.free(own);
      return result;
    },
    async dispose() {
      B.dispose();
      columns.dispose();
      await sharpener.dispose();
      for (const program of [start, solve]) await program.dispose();
    },
  };
};
