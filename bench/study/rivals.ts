/**
 * Methods that MoBE is compared with. Each factorises one group's experts within a number of parameters and multiplies the factors
 * again. All minimise the error of the weights only. The published methods with these names also use calibration data, Fisher
 * information or pruning.
 */
import { transpose } from '../../src/checkpoint/stored-matrix.js';
import { truncatedSvd } from '../../src/linalg/lapack/truncated-svd.js';
import { addScaled } from '../../src/linalg/vectors.js';
import { type Rank, rankWithin } from '../../src/methods/svd/baselines.js';

/** The experts of one layer and projection, each (rows, cols), row-major. */
export interface Experts {
  readonly experts: readonly Float32Array[];
  readonly rows: number;
  readonly cols: number;
}

/** A method's result. It has no more parameters than allowed. */
export interface Factorised extends Rank {
  /** Ŵ, with the shapes of the experts. */
  readonly experts: readonly Float32Array[];
}

/** A method. */
export type Rival = (group: Experts, parameters: number) => Factorised;

/** W_i ≈ A_i·B_g for the experts i of block g. Blocks are consecutive experts. It has k·(n·p + blocks·d) parameters. */
export const sharedRight =
  (blocks: number): Rival =>
  ({ experts, rows, cols }, parameters) => {
    const n = experts.length;
    const fits = rankWithin(parameters, n * rows + blocks * cols, Math.min(cols, Math.floor(n / blocks) * rows));
    const rebuilt: Float32Array[] = [];
    for (let g = 0; g < blocks; g++) {
      const members = experts.slice(Math.floor((g * n) / blocks), Math.floor(((g + 1) * n) / blocks));
      const height = members.length * rows;
      const { left, right } = truncatedSvd(concatenate(members), height, cols, fits.rank);
      const product = multiply(left, right, height, fits.rank, cols);
      for (let i = 0; i < height; i += rows) rebuilt.push(product.subarray(i * cols, (i + rows) * cols));
    }
    return { ...fits, experts: rebuilt };
  };

/** W_i ≈ U_i·V_i, with n·k·(p + d) parameters. */
export const perExpert: Rival = (group, parameters) => sharedRight(group.experts.length)(group, parameters);

/** W_i ≈ A·B_i, with k·(p + n·d) parameters. */
export const sharedLeft: Rival = ({ experts, rows, cols }, parameters) => {
  const transposed = experts.map((values) => turned(values, rows, cols));
  const result = sharedRight(1)({ experts: transposed, rows: cols, cols: rows }, parameters);
  return { ...result, experts: result.experts.map((values) => turned(values, cols, rows)) };
};

/** W_i ≈ W̄ + U_i·V_i, where W̄ is the experts' mean. It has p·d + n·k·(p + d) parameters. */
export const meanAndDeltas: Rival = ({ experts, rows, cols }, parameters) => {
  const mean = new Float32Array(rows * cols);
  for (let x = 0; x < mean.length; x++)
    mean[x] = experts.reduce((sum, values) => sum + (values[x] as number), 0) / experts.length;
  const deltas = experts.map((values) => values.map((value, x) => value - (mean[x] as number)));
  const result = perExpert({ experts: deltas, rows, cols }, parameters - mean.length);
  return {
    rank: result.rank,
    parameters: result.parameters + mean.length,
    experts: result.experts.map((values) => values.map((value, x) => value + (mean[x] as number))),
  };
};

function concatenate(parts: readonly Float32Array[]): Float32Array {
  const size = parts[0]?.length ?? 0;
  const whole = new Float32Array(parts.length * size);
  for (const [i, part] of parts.entries()) whole.set(part, i * size);
  return whole;
}

function turned(values: Float32Array, rows: number, cols: number): Float32Array {
  const target = new Float32Array(values.length);
  transpose(values, rows, cols, target);
  return target;
}

/** (rows, inner)·(inner, cols) */
function multiply(A: Float32Array, B: Float32Array, rows: number, inner: number, cols: number): Float32Array {
  const result = new Float32Array(rows * cols);
  const right = Float64Array.from(B);
  const row = new Float64Array(cols);
  for (let i = 0; i < rows; i++) {
    row.fill(0);
    for (let k = 0; k < inner; k++) addScaled(row, 0, A[i * inner + k] as number, right, k * cols, cols);
    result.set(row, i * cols);
  }
  return result;
}
