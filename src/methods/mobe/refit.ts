/**
 * The exact A for given B and α, one expert at a time: A = W Fᵀ (F Fᵀ)⁻¹, or A = W C Fᵀ (F C Fᵀ)⁻¹ in a metric. The inverse is
 * found by Newton–Schulz iteration, and iterative refinement removes its remaining error. In a metric of columns a CPU eliminates
 * instead. This runs once, after B and α were rounded to the stored dtype. The metric's P has no influence: P (A F − W) C Fᵀ = 0
 * has the same solution for all P.
 *
 * With a ridge, A minimises the squared error + λ‖A‖², with λ a share of the mean diagonal of G = F Fᵀ or F C Fᵀ. Then G + λI takes the
 * place of G, and a change E of A adds tr(E (G + λI) Eᵀ) to that minimum.
 */
import type { Engine, EngineTensor } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { add, elements, identity, matmul, mul, reshape, sub, total, type Value } from '../../engine/ops.js';
import type { ExpertFactorOptions, Metric } from '../method.js';
import { activate } from './activation.js';
import { eliminate } from './block-solve.js';
import { gram, restart } from './inverse.js';
import { createSharpener, STEPS } from './inverter.js';
import { metricShapes, timesColumns } from './metric.js';
import type { Problem, SharedFactors } from './problem.js';

/** Fits A of single experts to B and α. */
export interface Refit {
  /** A_i for W_i/σ = `target`: (p, r) f32, row-major. */
  fit(expert: number, target: Float32Array): Promise<Float32Array>;
  /** As `fit`, with the G of the expert, (r, r) f32 with its ridge. Only if `gram` was asked for. */
  fitWithGram(expert: number, target: Float32Array): Promise<{ A: Float32Array; gram: Float32Array }>;
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
export async function createRefit(
  engine: Engine,
  problem: Problem,
  factors: SharedFactors,
  metric?: Metric,
  options: ExpertFactorOptions = {},
): Promise<Refit> {
  const columns = columnsOf(engine, problem, metric);
  const eliminates = columns.shape !== undefined && engine.kind === 'cpu';
  const create = eliminates ? solveByElimination : solveByIteration;
  const solver = await create(engine, problem, factors, columns, options);
  return {
    fit: async (expert, target) => (await solver.solve(expert, target)).A,
    async fitWithGram(expert, target) {
      const { A, gram } = await solver.solve(expert, target);
      if (!gram) throw new RangeError('Gram matrices were not asked for');
      return { A, gram };
    },
    dispose: () => solver.dispose(),
  };
}

interface Solver {
  solve(expert: number, target: Float32Array): Promise<{ A: Float32Array; gram?: Float32Array | undefined }>;
  dispose(): Promise<void>;
}

type CreateSolver = (
  engine: Engine,
  problem: Problem,
  factors: SharedFactors,
  columns: ColumnsOfExperts,
  options: ExpertFactorOptions,
) => Promise<Solver>;

const solveByElimination: CreateSolver = async (engine, problem, { bases, coefficients }, columns, options) => {
  const { bases: m, rank: r, cols: d, rows: p, activation } = problem;
  const shapes = { B: [m, r * d], alpha: [1, m], W: [1, p, d], C: columns.shape };
  const program = await engine.compile(
    trace(shapes, ({ B, alpha, W, C }) => {
      const F = activate(activation, reshape(matmul(alpha, B), [1, r, d]));
      const FC = timesColumns(F, C);
      const G = gram(F, FC, options.ridge);
      const { A } = eliminate(G, matmul(W, FC, { transposeB: true }));
      return (options.gram ? { A, G } : { A }) as Record<'A' | 'G', Value>;
    }),
  );
  const B = engine.tensor(bases, [m, r * d]);
  return {
    async solve(expert, target) {
      const own = columns.get(expert);
      const alpha = engine.tensor(coefficients.slice(expert * m, (expert + 1) * m), [1, m]);
      const W = engine.tensor(target, [1, p, d]);
      const { A, G } = await program.run({ B, alpha, W, ...own });
      const solution = (await engine.read(A as EngineTensor)).slice();
      const gram = G && (await engine.read(G)).slice();
      for (const tensor of [alpha, W, A, G]) tensor?.dispose();
      columns.free(own);
      return { A: solution, gram };
    },
    async dispose() {
      B.dispose();
      columns.dispose();
      await program.dispose();
    },
  };
};

const solveByIteration: CreateSolver = async (engine, problem, { bases, coefficients }, columns, options) => {
  const { ridge } = options;
  const { bases: m, rank: r, cols: d, rows: p } = problem;
  const shapeOfC = columns.shape;
  const start = await engine.compile(
    trace({ B: [m, r * d], alpha: [1, m], C: shapeOfC }, ({ B, alpha, C }) => {
      const F = activate(problem.activation, reshape(matmul(alpha, B), [1, r, d]));
      const G = gram(F, timesColumns(F, C), ridge);
      return { F, G, ...restart(G, identity(r), STEPS) };
    }),
  );
  const sharpener = await createSharpener(engine, r);
  const solve = await engine.compile(
    trace({ F: [1, r, d], X: [1, r, r], W: [1, p, d], C: shapeOfC }, ({ F, X, W, C }) => {
      const FC = timesColumns(F, C);
      const lambda = ridge === undefined ? undefined : mul(total(mul(F, FC)), ridge / r);
      /** The slope of the error, less that of λ‖A‖². The smallest ridge, of G alone, is not meant to move A. */
      const slope = (R: Value, A?: Value): Value => {
        const V = matmul(R, FC, { transposeB: true });
        return lambda && A ? sub(V, mul(A, lambda)) : V;
      };
      const project = (R: Value, A?: Value): Value => matmul(slope(R, A), X);
      const error = (R: Value, A: Value): Value => {
        const squared = total(mul(R, timesColumns(R, C)));
        return lambda ? add(squared, mul(total(mul(A, A)), lambda)) : squared;
      };
      const A0 = project(W);
      const R0 = sub(W, matmul(A0, F));
      const A1 = add(A0, project(R0, A0));
      const R1 = sub(W, matmul(A1, F));
      const A2 = add(A1, project(R1, A1));
      return { A0, A1, A2, e0: error(R0, A0), e1: error(R1, A1), e2: error(sub(W, matmul(A2, F)), A2) };
    }),
  );
  const B = engine.tensor(bases, [m, r * d]);

  interface Inverted {
    readonly inverse: { readonly F: EngineTensor; readonly X: EngineTensor };
    readonly gram: Float32Array | undefined;
  }
  const invert = async (expert: number, own: { C?: EngineTensor }): Promise<Inverted> => {
    const alpha = engine.tensor(coefficients.slice(expert * m, (expert + 1) * m), [1, m]);
    const { F, G, X, residual } = (await start.run({ B, alpha, ...own })) as Record<
      'F' | 'G' | 'X' | 'residual',
      EngineTensor
    >;
    const inverse = await sharpener.finish(G, { X, residual });
    const gram = options.gram ? (await engine.read(G)).slice() : undefined;
    G.dispose();
    return { inverse: { F, X: inverse }, gram };
  };

  return {
    async solve(expert, target) {
      const own = columns.get(expert);
      const { inverse, gram } = await invert(expert, own);
      const inputs = { ...inverse, W: engine.tensor(target, [1, p, d]) };
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
      const A = (await engine.read(out[best] as EngineTensor)).slice();
      for (const tensor of [...Object.values(inputs), ...Object.values(out)]) tensor.dispose();
      columns.free(own);
      return { A, gram };
    },
    async dispose() {
      B.dispose();
      columns.dispose();
      await sharpener.dispose();
      for (const program of [start, solve]) await program.dispose();
    },
  };
};
