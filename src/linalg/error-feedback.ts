/**
 * How the error of a rounded column is fed forward to the columns after it. With G = U·D·Uᵀ, U unit upper triangular and D
 * diagonal, the error tr(E·G·Eᵀ) is Σ_j D_j·‖E·U_:j‖², and column j of E·U contains no later column of E. So each column is
 * rounded after the errors before it were added: x_j = w_j + Σ_{i<j} (w_i − z_i)·U_ij. This is GPTQ's rule (Frantar et al. 2022), in
 * the form of QuIP (Chee et al. 2023), which needs no inverse: GPTQ's upper Cholesky factor of G⁻¹ is D^(-½)·U⁻¹.
 */
import { addProduct } from './multiply-transposed.js';
import { dot } from './vectors.js';

/** Columns that are eliminated together. Larger blocks leave the processor's first cache. */
const BLOCK = 128;

/**
 * The share of G's mean diagonal that is added to it. G comes from products in f32, so its smallest eigenvalues are noise, and
 * feedback along them would be too.
 */
const DAMPING = 1e-6;
/** G is damped more, in steps of this factor, until it is positive definite. */
const MORE_DAMPING = 10;
const MOST_DAMPING = 1;

/** U and D of G = U·D·Uᵀ. */
export interface ErrorFeedback {
  readonly size: number;
  /** The diagonal of D: what the squared error of a column counts, after the errors before it were fed to it. */
  readonly weights: Float64Array;
  /** Uᵀ, (size, size) row-major: unit lower triangular. What is above its diagonal is not to be read. */
  readonly transposed: Float64Array;
}

/**
 * Finds the feedback of a metric.
 * @param gram G, (size, size) row-major, symmetric positive semidefinite. Only its upper triangle is read.
 */
export function createFeedback(gram: Float32Array | Float64Array, size: number, damping = DAMPING): ErrorFeedback {
  let mean = 0;
  for (let i = 0; i < size; i++) mean += (gram[i * size + i] as number) / size;
  if (!Number.isFinite(mean) || mean < 0) throw new RangeError(`a Gram matrix has the mean diagonal ${mean}`);
  const U = new Float64Array(size * size);
  // A G of zeros says nothing about errors. Columns are then rounded by themselves.
  if (mean > 0)
    for (let share = damping; !factorise(U, gram, size, share * mean); share *= MORE_DAMPING)
      if (share > MOST_DAMPING) throw new RangeError('a Gram matrix is not positive semidefinite, or not finite');
  const transposed = new Float64Array(size * size);
  const weights = new Float64Array(size);
  for (let j = 0; j < size; j++) {
    transposed[j * size + j] = 1;
    const pivot = U[j * size + j] as number;
    weights[j] = mean > 0 ? pivot ** 2 : 1;
    if (pivot > 0) for (let i = 0; i < j; i++) transposed[j * size + i] = (U[i * size + j] as number) / pivot;
  }
  return { size, weights, transposed };
}

/** G + ridge·I = R·Rᵀ, R upper triangular, written to U. Returns false if a pivot is not positive. */
function factorise(U: Float64Array, gram: Float32Array | Float64Array, n: number, ridge: number): boolean {
  U.set(gram);
  for (let end = n; end > 0; end -= BLOCK) {
    const start = Math.max(0, end - BLOCK);
    const rest = (row: number) => ({ data: U, at: row * n + end, stride: n });
    if (end < n) addProduct({ data: U, at: start, stride: n }, -1, rest(0), rest(start), [end, end - start, n - end]);
    for (let j = end - 1; j >= start; j--) {
      const [after, count] = [j * n + j + 1, end - j - 1];
      const pivot = (U[j * n + j] as number) + ridge - dot(U, after, U, after, count);
      if (!(pivot > 0)) return false;
      const root = Math.sqrt(pivot);
      U[j * n + j] = root;
      for (let i = 0; i < j; i++)
        U[i * n + j] = ((U[i * n + j] as number) - dot(U, i * n + j + 1, U, after, count)) / root;
    }
  }
  return true;
}
