/**
 * The largest eigenvalues of a symmetric matrix and their vectors, in f64: Householder's tridiagonal form, Sturm counts for the
 * values, inverse iteration for the vectors (as LAPACK's sytrd, stebz and stein). Only the wanted vectors cost anything, and
 * there is no product of dense matrices, so 768 × 768 takes about a second.
 */
import { createRandom } from './random.js';
import { addScaled, dot } from './vectors.js';

export interface Eigen {
  /** Largest first. */
  readonly values: Float64Array;
  /** One of length 1 for each value, orthogonal to each other. */
  readonly vectors: readonly Float64Array[];
}

/** @param matrix (n, n), row-major, of which the lower triangle is read; it is overwritten */
export function largestEigen(matrix: Float64Array, n: number, count: number): Eigen {
  const tridiagonal = tridiagonalise(matrix, n);
  const values = largestValues(tridiagonal, count);
  const vectors = tridiagonalVectors(tridiagonal, values);
  for (const vector of vectors) reflect(matrix, tridiagonal.scales, n, vector);
  return { values, vectors };
}

interface Tridiagonal {
  readonly diagonal: Float64Array;
  /** Beside the diagonal; the last entry is 0. */
  readonly beside: Float64Array;
}

/** T = Hᵀ·A·H. Reflector k takes the place of row k right of the diagonal of `matrix`; `scales` has its τ. */
function tridiagonalise(matrix: Float64Array, n: number): Tridiagonal & { readonly scales: Float64Array } {
  const diagonal = new Float64Array(n);
  const beside = new Float64Array(n);
  const scales = new Float64Array(n);
  const v = new Float64Array(n);
  const w = new Float64Array(n);
  for (let k = 0; k < n; k++) {
    diagonal[k] = matrix[k * n + k] as number;
    if (k + 1 === n) break;
    for (let i = k + 1; i < n; i++) v[i] = matrix[i * n + k] as number;
    const [beta, tau] = reflector(v, k + 1, n);
    beside[k] = beta;
    scales[k] = tau;
    matrix.set(v.subarray(k + 1), k * n + k + 1);
    if (tau === 0) continue;
    multiplyLower(matrix, n, k + 1, v, w);
    for (let i = k + 1; i < n; i++) w[i] = tau * (w[i] as number);
    addScaled(w, k + 1, (-tau / 2) * dot(w, k + 1, v, k + 1, n - k - 1), v, k + 1, n - k - 1);
    for (let i = k + 1; i < n; i++) {
      addScaled(matrix, i * n + k + 1, -(v[i] as number), w, k + 1, i - k);
      addScaled(matrix, i * n + k + 1, -(w[i] as number), v, k + 1, i - k);
    }
  }
  return { diagonal, beside, scales };
}

/** Turns x = v[from…] into the v of I − τ·v·vᵀ that makes a multiple β of e₁ of it. Returns [β, τ]. */
function reflector(v: Float64Array, from: number, n: number): [beta: number, tau: number] {
  const first = v[from] as number;
  const rest = dot(v, from + 1, v, from + 1, n - from - 1);
  if (rest === 0) return [first, 0];
  const beta = -Math.sign(first || 1) * Math.sqrt(first * first + rest);
  for (let i = from + 1; i < n; i++) v[i] = (v[i] as number) / (first - beta);
  v[from] = 1;
  return [beta, (beta - first) / beta];
}

/** w = A·v over the rows and columns from `from` on, by the lower triangle of A. */
function multiplyLower(matrix: Float64Array, n: number, from: number, v: Float64Array, w: Float64Array): void {
  w.fill(0, from);
  for (let i = from; i < n; i++) {
    const row = i * n;
    w[i] = (w[i] as number) + dot(matrix, row + from, v, from, i - from + 1);
    addScaled(w, from, v[i] as number, matrix, row + from, i - from);
  }
}

/** x ← H·x */
function reflect(matrix: Float64Array, scales: Float64Array, n: number, x: Float64Array): void {
  for (let k = n - 2; k >= 0; k--) {
    const length = n - k - 1;
    const at = k * n + k + 1;
    addScaled(x, k + 1, -(scales[k] as number) * dot(matrix, at, x, k + 1, length), matrix, at, length);
  }
}

/** An f64 has no more places to look for a value. */
const MOST_HALVINGS = 1100;

/** By bisection: the number of negative pivots of T − x·I is that of the eigenvalues below x (Sylvester). */
function largestValues({ diagonal, beside }: Tridiagonal, count: number): Float64Array {
  const n = diagonal.length;
  const bound = largestSum({ diagonal, beside });
  const below = (x: number): number => {
    let negative = 0;
    let pivot = 1;
    for (let i = 0; i < n; i++) {
      const side = i === 0 ? 0 : (beside[i - 1] as number);
      pivot = (diagonal[i] as number) - x - (side * side) / pivot;
      if (pivot === 0) pivot = -SMALLEST * bound || -Number.MIN_VALUE;
      if (pivot < 0) negative++;
    }
    return negative;
  };
  const values = new Float64Array(count);
  let most = bound;
  for (let k = 0; k < count; k++) {
    let low = -bound;
    let high = most;
    for (let i = 0; i < MOST_HALVINGS && high - low > PRECISION * bound; i++) {
      const middle = (low + high) / 2;
      if (middle <= low || middle >= high) break;
      if (below(middle) >= n - k) high = middle;
      else low = middle;
    }
    values[k] = high;
    most = Math.min(bound, high + PRECISION * bound);
  }
  return values;
}

const PRECISION = 2 ** -52;
/** Stands for a pivot of zero, as a share of the largest entry. */
const SMALLEST = 2 ** -60;

/** ‖T‖∞ */
const largestSum = ({ diagonal, beside }: Tridiagonal): number =>
  diagonal.reduce(
    (most, value, i) => Math.max(most, Math.abs(value) + Math.abs(beside[i] as number) + Math.abs(beside[i - 1] ?? 0)),
    0,
  );

/** Vectors of values nearer to each other than this share of ‖T‖ come out mixed, and are made orthogonal. */
const CLUSTER = 1e-3;
const SOLVES = 3;

/** A random vector, (T − λI)⁻¹ applied to it a few times, and what it shares with neighbours taken out each time. */
function tridiagonalVectors(tridiagonal: Tridiagonal, values: Float64Array): Float64Array[] {
  const n = tridiagonal.diagonal.length;
  const norm = largestSum(tridiagonal);
  const random = createRandom(0);
  const vectors: Float64Array[] = [];
  let first = 0;
  for (const [k, value] of values.entries()) {
    while ((values[first] as number) - value > CLUSTER * norm) first++;
    const solve = factorised(tridiagonal, value, norm);
    const x = Float64Array.from({ length: n }, () => random.normal());
    for (let i = 0; i < SOLVES; i++) {
      solve(x);
      normalise(x);
      for (let j = first; j < k; j++)
        addScaled(x, 0, -dot(x, 0, vectors[j] as Float64Array, 0, n), vectors[j] as Float64Array, 0, n);
      normalise(x);
    }
    vectors.push(x);
  }
  return vectors;
}

function normalise(x: Float64Array): void {
  const most = x.reduce((top, value) => Math.max(top, Math.abs(value)), 0);
  for (let i = 0; i < x.length; i++) x[i] = (x[i] as number) / most; // squares of what is huge would overflow
  const length = Math.sqrt(dot(x, 0, x, 0, x.length));
  for (let i = 0; i < x.length; i++) x[i] = (x[i] as number) / length;
}

/** Solves (T − λI)·x = b in place, by elimination with row exchanges: three diagonals become two rows above. */
function factorised({ diagonal, beside }: Tridiagonal, value: number, norm: number): (x: Float64Array) => void {
  const n = diagonal.length;
  const pivots = new Float64Array(n);
  const upper = new Float64Array(n);
  const second = new Float64Array(n);
  const factors = new Float64Array(n);
  const exchanged = new Uint8Array(n);
  const least = PRECISION * norm || 1;
  let pivot = (diagonal[0] as number) - value;
  let next = (beside[0] as number) || 0;
  for (let i = 0; i + 1 < n; i++) {
    const side = beside[i] as number;
    const own = (diagonal[i + 1] as number) - value;
    const after = beside[i + 1] as number;
    if (Math.abs(side) > Math.max(Math.abs(pivot), least)) {
      exchanged[i] = 1;
      pivots[i] = side;
      upper[i] = own;
      second[i] = after;
      const factor = pivot / side;
      factors[i] = factor;
      pivot = next - factor * own;
      next = -factor * after;
    } else {
      if (Math.abs(pivot) < least) pivot = least;
      const factor = side / pivot;
      factors[i] = factor;
      pivots[i] = pivot;
      upper[i] = next;
      pivot = own - factor * next;
      next = after;
    }
  }
  pivots[n - 1] = Math.abs(pivot) < least ? least : pivot;
  return (x) => {
    for (let i = 0; i + 1 < n; i++) {
      if (exchanged[i]) [x[i], x[i + 1]] = [x[i + 1] as number, x[i] as number];
      x[i + 1] = (x[i + 1] as number) - (factors[i] as number) * (x[i] as number);
    }
    for (let i = n - 1; i >= 0; i--) {
      const one = i + 1 < n ? (upper[i] as number) * (x[i + 1] as number) : 0;
      const two = i + 2 < n ? (second[i] as number) * (x[i + 2] as number) : 0;
      x[i] = ((x[i] as number) - one - two) / (pivots[i] as number);
    }
  };
}
