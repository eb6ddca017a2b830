/**
 * Householder reduction of a matrix in f64, reflectors and signs as LAPACK's geqrf and gebrd choose them: a column x
 * becomes β·e₁ with β = −sign(x₁)·‖x‖ and H = I − τ·v·vᵀ, v₁ = 1.
 */
import { addScaled, dot } from '../vectors.js';

/** A row-major (rows, cols) matrix, rows ≥ cols, overwritten: reflectors, and above the diagonal what `reduce` says. */
export interface Reduced {
  readonly matrix: Float64Array;
  readonly rows: number;
  readonly cols: number;
  readonly diagonal: Float64Array;
  /** Beside the diagonal, cols − 1 values; zero for a triangular reduction. */
  readonly superdiagonal: Float64Array;
  /** τ of the reflectors applied from the left: v_k is column k from row k down. */
  readonly left: Float64Array;
  /** τ of those applied from the right: v_k is row k from column k + 1 on. */
  readonly right: Float64Array;
}

/**
 * To upper bidiagonal form, or with `triangular` only to an upper triangle, which then stays in the rows right of the
 * diagonal. One pass over what is left of the matrix a step: a row takes both reflectors, and adds its share of what the
 * next one needs, g = xᵀ·A for its first column x. With that, vᵀA follows: row k becomes g/β and loses w = row − g/β.
 */
export function reduce(matrix: Float64Array, rows: number, cols: number, triangular = false): Reduced {
  const diagonal = new Float64Array(cols);
  const superdiagonal = new Float64Array(Math.max(0, cols - 1));
  const left = new Float64Array(cols);
  const right = new Float64Array(cols);
  const v = new Float64Array(rows);
  const w = new Float64Array(cols);
  const g = new Float64Array(cols);
  for (let i = 0; i < rows; i++) {
    v[i] = matrix[i * cols] as number;
    addScaled(g, 0, v[i] as number, matrix, i * cols, cols);
  }
  for (let k = 0; k < cols; k++) {
    const [beta, leftTau] = reflector(v, k, rows - k);
    diagonal[k] = beta;
    left[k] = leftTau;
    for (let i = k; i < rows; i++) matrix[i * cols + k] = v[i] as number;
    const from = k + 1;
    if (from === cols) break;
    const length = cols - from;
    const top = k * cols + from;
    w.set(matrix.subarray(top, top + length), from);
    if (leftTau !== 0) for (let j = 0; j < length; j++) matrix[top + j] = (g[from + j] as number) / beta;
    addScaled(w, from, -1, matrix, top, length);
    if (!triangular) [superdiagonal[k], right[k]] = reflector(matrix, top, length) as [number, number];
    const rightTau = right[k] as number;
    g.fill(0);
    for (let i = from; i < rows; i++) {
      const row = i * cols + from;
      const product = addScaledDot(matrix, row, -(v[i] as number), w, from, matrix, top, length);
      const x = (matrix[row] as number) - rightTau * product * (matrix[top] as number);
      addScaledSum(matrix, row, -rightTau * product, matrix, top, g, from, x, length);
      v[i] = x;
    }
  }
  return { matrix, rows, cols, diagonal, superdiagonal, left, right };
}

/** x ← H₁·H₂·…·x for each row x of `vectors`, with the reflectors of one side. */
export function applyReflectors(reduced: Reduced, side: 'left' | 'right', vectors: readonly Float64Array[]): void {
  const { matrix, rows, cols } = reduced;
  const size = side === 'left' ? rows : cols;
  const shift = side === 'left' ? 0 : 1;
  const v = new Float64Array(size);
  for (let k = cols - 1; k >= 0; k--) {
    const tau = reduced[side][k] as number;
    if (tau === 0) continue;
    for (let i = k + shift; i < size; i++) v[i] = matrix[side === 'left' ? i * cols + k : k * cols + i] as number;
    const length = size - k - shift;
    for (const x of vectors)
      addScaled(x, k + shift, -tau * dot(x, k + shift, v, k + shift, length), v, k + shift, length);
  }
}

/** Turns x into v and returns [β, τ]; a multiple of e₁ is left alone, whatever its sign. */
function reflector(x: Float64Array, from: number, length: number): [number, number] {
  const alpha = x[from] as number;
  x[from] = 1;
  const tail = dot(x, from + 1, x, from + 1, length - 1);
  if (tail === 0) return [alpha, 0];
  const beta = -Math.sign(alpha || 1) * Math.sqrt(alpha * alpha + tail);
  for (let i = from + 1; i < from + length; i++) x[i] = (x[i] as number) / (alpha - beta);
  return [beta, (beta - alpha) / beta];
}

/** y += s·x, and the new y's product with z. */
function addScaledDot(
  y: Float64Array,
  at: number,
  s: number,
  x: Float64Array,
  from: number,
  z: Float64Array,
  within: number,
  length: number,
): number {
  let s0 = 0;
  let s1 = 0;
  let i = 0;
  for (; i + 1 < length; i += 2) {
    const a = (y[at + i] as number) + s * (x[from + i] as number);
    const b = (y[at + i + 1] as number) + s * (x[from + i + 1] as number);
    y[at + i] = a;
    y[at + i + 1] = b;
    s0 += a * (z[within + i] as number);
    s1 += b * (z[within + i + 1] as number);
  }
  if (i < length) {
    const a = (y[at + i] as number) + s * (x[from + i] as number);
    y[at + i] = a;
    s0 += a * (z[within + i] as number);
  }
  return s0 + s1;
}

/** y += s·x, and sum += t·y with the new y. */
function addScaledSum(
  y: Float64Array,
  at: number,
  s: number,
  x: Float64Array,
  from: number,
  sum: Float64Array,
  into: number,
  t: number,
  length: number,
): void {
  for (let i = 0; i < length; i++) {
    const a = (y[at + i] as number) + s * (x[from + i] as number);
    y[at + i] = a;
    sum[into + i] = (sum[into + i] as number) + t * a;
  }
}
