/**
 * One expert's truncated singular value decomposition. The Gram matrix of W's shorter side and all other products of matrices run
 * on the engine, in f32; its leading eigenvectors are found in f64. Squaring W loses nothing that shows: an error ε of the Gram
 * matrix turns its vectors only among values that differ by about ε, and there either choice is as good.
 */
import type { Engine, EngineTensor } from '../../engine/engine.js';
import { trace } from '../../engine/graph.js';
import { add, matmul, sub, type Value } from '../../engine/ops.js';
import { largestEigen } from '../../linalg/symmetric-eigen.js';
import { addScaled, dot } from '../../linalg/vectors.js';
import type { ExpertFactors, Rounding } from '../method.js';
import { REFINEMENTS } from './costs.js';
import type { Problem } from './problem.js';

/**
 * V is rounded before A is fitted to it. Its rows are all but orthonormal, or zero, so W·Vᵀ is nearly the
 * least-squares A, and adding the same of the remainder a few times makes it exact: each round leaves ‖I − V·Vᵀ‖ of the error.
 */
export async function createExpertFactors(
  engine: Engine,
  { rows: p, cols: d, rank: r }: Problem,
  round: Rounding,
): Promise<ExpertFactors> {
  const wide = p <= d;
  const short = Math.min(p, d);
  const gram = await engine.compile(
    trace({ W: [p, d] }, ({ W }) => ({ G: matmul(W, W, wide ? { transposeB: true } : { transposeA: true }) })),
  );
  const project = await engine.compile(trace({ U: [r, p], W: [p, d] }, ({ U, W }) => ({ V: matmul(U, W) })));
  const refine = await engine.compile(
    trace({ W: [p, d], V: [r, d] }, ({ W, V }) => {
      let A: Value = matmul(W, V, { transposeB: true });
      for (let i = 0; i < REFINEMENTS; i++) A = add(A, matmul(sub(W, matmul(A, V)), V, { transposeB: true }));
      return { A };
    }),
  );

  /** The right singular vectors, (r, d): those of WᵀW, or from those of WWᵀ. */
  const rightVectors = async (W: EngineTensor): Promise<Float32Array> => {
    const { G } = (await gram.run({ W })) as { G: EngineTensor };
    const { vectors } = largestEigen(Float64Array.from(await engine.read(G)), short, r);
    G.dispose();
    const found = new Float32Array(r * short);
    for (const [k, vector] of vectors.entries()) found.set(vector, k * short);
    if (!wide) return found;
    const U = engine.tensor(found, [r, p]);
    const { V } = (await project.run({ U, W })) as { V: EngineTensor };
    const right = orthonormal(await engine.read(V), d);
    for (const tensor of [U, V]) tensor.dispose();
    return right;
  };

  return {
    async fit(_, target) {
      const W = engine.tensor(target, [p, d]);
      const V = round(await rightVectors(W));
      const inputs = { W, V: engine.tensor(V, [r, d]) };
      const { A } = (await refine.run(inputs)) as { A: EngineTensor };
      const factors = { A: (await engine.read(A)).slice(), V };
      for (const tensor of [W, inputs.V, A]) tensor.dispose();
      return factors;
    },
    async dispose() {
      for (const program of [gram, project, refine]) await program.dispose();
    },
  };
}

/**
 * Rows shorter than this share of the longest may lean on others: their inner product with row i is the Gram matrix's rounding,
 * over both their lengths.
 */
const LEANING = 1e-2;
/** A row of which no more than this is left beside the others is no direction of W, but rounding. */
const NOTHING = 1e-6;

/** Rows of length σ_k, largest first, made orthonormal; where W has no more directions they are zero. */
function orthonormal(values: Float32Array, cols: number): Float32Array {
  const rows: Float64Array[] = [];
  const result = new Float32Array(values.length);
  let longest = 0;
  for (let start = 0; start < values.length; start += cols) {
    const row = Float64Array.from(values.subarray(start, start + cols));
    const length = makeUnit(row, 0);
    longest = Math.max(longest, length);
    // Twice: the first time leaves the rounding of what it takes away.
    for (let pass = 0; pass < 2 && length < LEANING * longest; pass++) {
      for (const other of rows) addScaled(row, 0, -dot(row, 0, other, 0, cols), other, 0, cols);
      makeUnit(row, NOTHING);
    }
    rows.push(row);
    result.set(row, start);
  }
  return result;
}

/** Scales to length 1, or to nothing where it is no longer than `least`. Returns the length it had. */
function makeUnit(row: Float64Array, least: number): number {
  const length = Math.sqrt(dot(row, 0, row, 0, row.length));
  for (let i = 0; i < row.length; i++) row[i] = length > least ? (row[i] as number) / length : 0;
  return length;
}
