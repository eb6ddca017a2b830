/**
 * Singular values and right vectors of a small bidiagonal matrix by implicit QR iteration: the path that LAPACK's
 * lasdq and bdsqr take (Demmel & Kahan 1990), with f32's tolerances, so that the vectors come out with the same signs.
 */

/** Machine epsilon as LAPACK's slamch says it: half the spacing of f32 at 1. */
export const EPSILON = 2 ** -24;
const TOLERANCE = 10 * EPSILON;
/** bdsqr's own limit is 6·n² single steps. */
const MAX_SWEEPS_PER_VALUE = 60;

/**
 * The upper bidiagonal (n, n), or with an n-th value beside the diagonal (n, n+1), matrix. Singular values in no order;
 * `vectors` has a right vector a row, and as its last, where the matrix is not square, the null vector.
 */
export function smallBidiagonalSvd(diagonal: Float64Array, superdiagonal: Float64Array) {
  const n = diagonal.length;
  const width = Math.max(n, superdiagonal.length + 1);
  const d = diagonal.slice();
  const e = superdiagonal.slice();
  const vectors = Array.from({ length: width }, (_, i) => new Float64Array(width).fill(1, i, i + 1));
  const rotateRows = (i: number, c: number, s: number): void =>
    rotate(vectors[i] as Float64Array, vectors[i + 1] as Float64Array, c, s);
  if (width > n) {
    toOtherTriangle(d, e, n, rotateRows);
    toOtherTriangle(d, e, n - 1, () => {});
  }
  iterate(d, e, rotateRows);
  for (let i = 0; i < n; i++) {
    if ((d[i] as number) >= 0) continue;
    d[i] = -(d[i] as number);
    const row = vectors[i] as Float64Array;
    for (let j = 0; j < width; j++) row[j] = -(row[j] as number);
  }
  return { values: d, vectors };
}

/** Rotates the values beside the diagonal to its other side: upper to lower from the right, lower to upper from the left. */
export function toOtherTriangle(
  d: Float64Array,
  e: Float64Array,
  count: number,
  rotated: (i: number, c: number, s: number) => void,
): void {
  for (let i = 0; i < count; i++) {
    const [c, s, r] = givens(d[i] as number, e[i] as number);
    d[i] = r;
    e[i] = 0;
    if (i + 1 < d.length) {
      e[i] = s * (d[i + 1] as number);
      d[i + 1] = c * (d[i + 1] as number);
    }
    rotated(i, c, s);
  }
}

type RotateRows = (upper: number, c: number, s: number) => void;

function iterate(d: Float64Array, e: Float64Array, rotateRows: RotateRows): void {
  const n = d.length;
  const D = (i: number): number => d[i] as number;
  const E = (i: number): number => e[i] as number;
  const threshold = Math.max(TOLERANCE * smallestEstimate(d, e), 6 * n * n * 2 ** -126);
  let last = n - 1;
  let previous = { first: -1, last: -1 };
  let downwards = true;
  for (let sweep = 0; last > 0 && sweep < MAX_SWEEPS_PER_VALUE * n; sweep++) {
    let first = last;
    let largest = Math.abs(D(last));
    while (first > 0 && Math.abs(E(first - 1)) > threshold) {
      first--;
      largest = Math.max(largest, Math.abs(D(first)), Math.abs(E(first)));
    }
    if (first > 0) e[first - 1] = 0;
    if (first === last) {
      last--;
      continue;
    }
    if (first === last - 1) {
      const { large, small, c, s } = twoByTwo(D(first), E(first), D(last));
      d[first] = large;
      d[last] = small;
      e[first] = 0;
      rotateRows(first, c, s);
      last -= 2;
      continue;
    }
    // On a new block: from the larger end towards the smaller.
    if (first > previous.last || last < previous.first) downwards = Math.abs(D(first)) >= Math.abs(D(last));
    const smallest = separate(d, e, first, last, downwards);
    if (smallest === undefined) continue;
    previous = { first, last };

    const top = downwards ? first : last;
    let shift = 0;
    if (n * TOLERANCE * (smallest / largest) > EPSILON) {
      const at = downwards ? last - 1 : first;
      shift = smallerSingularValue(D(at), E(at), D(at + 1));
      if ((shift / D(top)) ** 2 < EPSILON) shift = 0;
    }
    chase(d, e, first, last, downwards, shift, rotateRows);
    const end = downwards ? last - 1 : first;
    if (Math.abs(E(end)) <= threshold) e[end] = 0;
  }
}

/** A lower bound of the least singular value, over √n. */
function smallestEstimate(d: Float64Array, e: Float64Array): number {
  let mu = Math.abs(d[0] as number);
  let least = mu;
  for (let i = 1; i < d.length && least > 0; i++) {
    mu = Math.abs(d[i] as number) * (mu / (mu + Math.abs(e[i - 1] as number)));
    least = Math.min(least, mu);
  }
  return least / Math.sqrt(d.length);
}

/** Zeroes the first negligible value beside the diagonal; where there is none, returns a bound of the least singular value. */
function separate(
  d: Float64Array,
  e: Float64Array,
  first: number,
  last: number,
  downwards: boolean,
): number | undefined {
  const end = downwards ? last - 1 : first;
  if (Math.abs(e[end] as number) <= TOLERANCE * Math.abs(d[downwards ? last : first] as number)) {
    e[end] = 0;
    return undefined;
  }
  let mu = Math.abs(d[downwards ? first : last] as number);
  let least = mu;
  for (let step = 0; step < last - first; step++) {
    const i = downwards ? first + step : last - 1 - step;
    if (Math.abs(e[i] as number) <= TOLERANCE * mu) {
      e[i] = 0;
      return undefined;
    }
    mu = Math.abs(d[downwards ? i + 1 : i] as number) * (mu / (mu + Math.abs(e[i] as number)));
    least = Math.min(least, mu);
  }
  return least;
}

/** One QR sweep, upwards as the mirror image of downwards. */
function chase(
  d: Float64Array,
  e: Float64Array,
  first: number,
  last: number,
  downwards: boolean,
  shift: number,
  rotateRows: RotateRows,
): void {
  const count = last - first;
  const at = (i: number): number => (downwards ? first + i : last - i);
  const beside = (i: number): number => (downwards ? first + i : last - 1 - i);
  const D = (i: number): number => d[at(i)] as number;
  const E = (i: number): number => e[beside(i)] as number;
  // Going up, the rotations from the other side are the ones the right vectors see, and the rows change places.
  const rotated = (i: number, right: readonly number[], left: readonly number[]): void => {
    if (downwards) rotateRows(first + i, right[0] as number, right[1] as number);
    else rotateRows(last - 1 - i, left[0] as number, -(left[1] as number));
  };
  if (shift === 0) {
    let right = [1, 0, 0];
    let left = [1, 0, 0];
    for (let i = 0; i < count; i++) {
      right = givens(D(i) * (right[0] as number), E(i));
      if (i > 0) e[beside(i - 1)] = (left[1] as number) * (right[2] as number);
      left = givens((left[0] as number) * (right[2] as number), D(i + 1) * (right[1] as number));
      d[at(i)] = left[2] as number;
      rotated(i, right, left);
    }
    const h = D(count) * (right[0] as number);
    d[at(count)] = h * (left[0] as number);
    e[beside(count - 1)] = h * (left[1] as number);
    return;
  }
  let f = (Math.abs(D(0)) - shift) * (Math.sign(D(0)) + shift / D(0));
  let g = E(0);
  for (let i = 0; i < count; i++) {
    const right = givens(f, g);
    if (i > 0) e[beside(i - 1)] = right[2];
    f = right[0] * D(i) + right[1] * E(i);
    e[beside(i)] = right[0] * E(i) - right[1] * D(i);
    g = right[1] * D(i + 1);
    d[at(i + 1)] = right[0] * D(i + 1);
    const left = givens(f, g);
    d[at(i)] = left[2];
    f = left[0] * E(i) + left[1] * D(i + 1);
    d[at(i + 1)] = left[0] * D(i + 1) - left[1] * E(i);
    if (i < count - 1) {
      g = left[1] * E(i + 1);
      e[beside(i + 1)] = left[0] * E(i + 1);
    }
    rotated(i, right, left);
  }
  e[beside(count - 1)] = f;
}

/** [c, s, r] with c·f + s·g = r and c·g = s·f; c ≥ 0 (LAPACK's lartg since 3.10). */
function givens(f: number, g: number): [number, number, number] {
  if (g === 0) return [1, 0, f];
  if (f === 0) return [0, Math.sign(g), Math.abs(g)];
  const r = Math.sign(f) * Math.sqrt(f * f + g * g);
  return [Math.abs(f) / Math.abs(r), g / r, r];
}

export function rotate(x: Float64Array, y: Float64Array, c: number, s: number): void {
  for (let i = 0; i < x.length; i++) {
    const a = x[i] as number;
    const b = y[i] as number;
    x[i] = c * a + s * b;
    y[i] = c * b - s * a;
  }
}

/** The smaller singular value of [f g; 0 h] (LAPACK's las2). */
function smallerSingularValue(f: number, g: number, h: number): number {
  const sum = Math.hypot(Math.abs(f) + Math.abs(h), g);
  const difference = Math.hypot(Math.abs(f) - Math.abs(h), g);
  return f === 0 || h === 0 ? 0 : (2 * Math.abs(f) * Math.abs(h)) / (sum + difference);
}

/** [f g; 0 h] made diagonal, with the rotation from the right, its signs and those of the values (LAPACK's lasv2). */
function twoByTwo(f: number, g: number, h: number) {
  const swap = Math.abs(h) > Math.abs(f);
  const [ft, ht] = swap ? [h, f] : [f, h];
  const [fa, ha] = [Math.abs(ft), Math.abs(ht)];
  const sign = (x: number): number => (x < 0 ? -1 : 1);
  if (g === 0) {
    const [c, s] = swap ? [0, 1] : [1, 0];
    return { large: ft, small: ht, c, s };
  }
  const l = (fa - ha) / fa;
  const m = g / ft;
  const t = 2 - l;
  const s = Math.hypot(t, m);
  const r = Math.hypot(l, m);
  const a = (s + r) / 2;
  const tangent = (m / (s + t) + m / (r + l)) * (1 + a);
  const length = Math.hypot(tangent, 2);
  const [crt, srt] = [2 / length, tangent / length];
  const [clt, slt] = [(crt + srt * m) / a, ((ht / ft) * srt) / a];
  const right = swap ? { c: slt, s: clt } : { c: crt, s: srt };
  const leftC = swap ? srt : clt;
  const leftS = swap ? crt : slt;
  let largest = sign(right.c) * sign(leftC) * sign(f);
  if (Math.abs(g) > fa) largest = sign(right.s) * sign(leftC) * sign(g);
  else if (swap) largest = sign(right.s) * sign(leftS) * sign(h);
  return { large: largest * fa * a, small: largest * sign(f) * sign(h) * (ha / a), ...right };
}
