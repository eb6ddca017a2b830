/** The start of the varpro solver. */
import type { Engine, EngineTensor, Program } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { add, matmul } from '../../engine/ops.js';
import { createRandom, type Random } from '../../linalg/random.js';
import type { Targets } from '../method.js';
import { columnsOf, partOf } from './basis-parts.js';
import { type BatchRange, solverBatches } from './batches.js';
import type { Activation, Problem, SolverOptions } from './problem.js';

/** The scale of the starting bases. It is small, so that f starts almost linear. The fit then bends it as far as that helps. */
const STARTING_SCALE = 0.25;
/** α starts as normal numbers with this deviation divided by √m. The arguments of f then start about as large as they end. */
const STARTING_COEFFICIENT: Record<Activation, number> = {
  silu: 0.2,
  tanh: 0.5,
  gelu: 0.2,
  relu: 0.2,
  sigmoid: 1,
  none: 0.2,
};

/** Input axes are scaled by the quarter power of their energy. An energy counts as at least LEAST_ENERGY of the mean. */
const COLUMN_POWER = 0.25;
const LEAST_ENERGY = 1e-4;

/**
 * Computes P_i W_i for the starting bases B_j = Σ_i c_ji · P_i W_i. P_i chooses r random rows with random signs. Rows with the
 * experts' own covariance start several times nearer to the result than isotropic noise. Returns P_i W_i of `count` experts
 * from `first` on, (count, r, d), and adds their ΣW² of each column to `energy`.
 */
function scrambleRows(
  problem: Problem,
  targets: Targets,
  { first, count }: BatchRange,
  seed: number,
  energy: Float64Array,
): Float32Array {
  const { rows, cols, rank } = problem;
  const scrambled = new Float32Array(count * rank * cols);
  const weights = new Float32Array(rows * cols);
  for (let e = 0; e < count; e++) {
    const random = createRandom(seed, first + e);
    targets.read(first + e, weights);
    for (let row = 0; row < weights.length; row += cols) {
      for (let x = 0; x < cols; x++) energy[x] = (energy[x] as number) + (weights[row + x] as number) ** 2;
    }
    const order = permutation(rows, random);
    for (let k = 0; k < rank; k++) {
      const from = (order[k] as number) * cols;
      const to = (e * rank + k) * cols;
      const negative = random.uniform() < 0.5;
      for (let x = 0; x < cols; x++) {
        const value = weights[from + x] as number;
        scrambled[to + x] = negative ? -value : value;
      }
    }
  }
  return scrambled;
}

function permutation(size: number, random: Random): Uint32Array {
  const order = Uint32Array.from({ length: size }, (_, i) => i);
  for (let i = size - 1; i > 0; i--) {
    const j = random.below(i + 1);
    [order[i], order[j]] = [order[j] as number, order[i] as number];
  }
  return order;
}

/** Normal numbers with the given standard deviation. */
function normals(count: number, deviation: number, random: Random): Float32Array {
  return Float32Array.from({ length: count }, () => deviation * random.normal());
}

/** The starting bases and scales. */
export interface Start {
  /** B_j ∝ Σ_i c_ji · P_i W_i, (m, r·d). */
  readonly bases: EngineTensor;
  /** A tensor of the same shape that is free; undefined if the bases have one part. */
  readonly spare: EngineTensor | undefined;
  /** The scale of each input axis, (1, 1, d). */
  readonly columns: EngineTensor;
}

/** Computes the starting bases in one pass over the experts. */
export async function startingBases(
  engine: Engine,
  problem: Problem,
  targets: Targets,
  { batchExperts, seed }: SolverOptions,
  random: Random,
  parts: readonly BatchRange[],
): Promise<Start> {
  const { experts: n, bases: m, rank: r, cols: d } = problem;
  const shares = normals(m * n, STARTING_SCALE / Math.sqrt(n), random); // c, (m, n)
  const zeros = (): EngineTensor => engine.tensor(new Float32Array(m * r * d), [m, r * d], true);
  let bases = zeros();
  let spare = parts.length > 1 ? zeros() : undefined;
  const programs = new Map<string, Program>();
  const energy = new Float64Array(d);
  for (const range of solverBatches(engine, problem, batchExperts)) {
    const { count } = range;
    const scrambled = engine.tensor(scrambleRows(problem, targets, range, seed, energy), [count, r * d]);
    let next = spare;
    for (const part of parts) {
      const key = `${part.count} ${count}`;
      let program = programs.get(key);
      if (!program) {
        const graph = trace({ B: [part.count, r * d], shares: [part.count, count], Y: [count, r * d] }, (it) => ({
          B: add(it.B, matmul(it.shares, it.Y)),
        }));
        program = await engine.compile(graph);
        programs.set(key, program);
      }
      const own = engine.tensor(columnsOf(shares, n, part, range), [part.count, count]);
      const inputs = { B: partOf(bases, part), shares: own, Y: scrambled };
      const { B } = await program.run(inputs, next && { B: partOf(next, part) });
      next ??= B as EngineTensor;
    }
    scrambled.dispose();
    if (spare) spare = bases;
    else bases.dispose();
    bases = next as EngineTensor;
  }
  for (const program of programs.values()) await program.dispose();
  return { bases, spare, columns: engine.tensor(columnScales(energy), [1, 1, d]) };
}

/** The starting α, (n, m). */
export const startingCoefficients = ({ experts: n, bases: m, activation }: Problem, random: Random): Float32Array =>
  normals(n * m, STARTING_COEFFICIENT[activation] / Math.sqrt(m), random);

function columnScales(energy: Float64Array): Float32Array {
  const mean = energy.reduce((sum, value) => sum + value, 0) / energy.length;
  return Float32Array.from(energy, (value) => Math.max(value / mean || 0, LEAST_ENERGY) ** COLUMN_POWER);
}
