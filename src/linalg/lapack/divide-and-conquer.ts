/**
 * Singular values and right vectors of an upper bidiagonal matrix by divide and conquer (Gu & Eisenstat 1995), along the
 * path of LAPACK's sbdsdc: the same tree, the same rule for what counts as negligible, and so the same signs. They are
 * a free choice in theory, but a nonlinear f is about to be applied to the vectors.
 */
import { addScaled } from '../vectors.js';
import { EPSILON, rotate, smallBidiagonalSvd } from './qr-iteration.js';

interface Solved {
  readonly values: Float64Array;
  /** Those of `values`, as wide as the matrix, and last a null vector where it is not square. */
  readonly vectors: Float64Array[];
}

/** The largest size that is solved by QR iteration. */
const SMALL = 25;

/** An f64 has no more places to look for a root. */
const MOST_HALVINGS = 1100;

/** All singular values, largest first, and the right vectors of the first `wanted`. */
export function bidiagonalSvd(diagonal: Float64Array, superdiagonal: Float64Array, wanted: number): Solved {
  const n = diagonal.length;
  const scale = [...diagonal, ...superdiagonal].reduce((most, x) => Math.max(most, Math.abs(x)), 0);
  if (n === 1) return { values: diagonal.map(Math.abs), vectors: [Float64Array.of(1)].slice(0, wanted) };
  if (n <= SMALL || scale === 0) return largestFirst([smallBidiagonalSvd(diagonal, superdiagonal)], [0], n, wanted);
  const d = diagonal.map((x) => (Math.abs(x) < EPSILON * scale ? Math.sign(x || 1) * EPSILON : x / scale));
  const e = superdiagonal.map((x) => x / scale);
  const parts: Solved[] = [];
  const offsets: number[] = [];
  for (let start = 0; start < n; ) {
    let end = start + 1;
    while (end < n && Math.abs(e[end - 1] as number) >= EPSILON) end++;
    const size = end - start;
    const part =
      size <= SMALL
        ? smallBidiagonalSvd(d.subarray(start, end), e.subarray(start, end - 1))
        : divide(
            d.subarray(start, end),
            e.subarray(start, end - 1),
            Math.floor(Math.log2(size / (SMALL + 1))) + 1,
            wanted,
          );
    parts.push({ values: part.values.map((x) => x * scale), vectors: part.vectors });
    offsets.push(start);
    start = end;
  }
  return largestFirst(parts, offsets, n, wanted);
}

function largestFirst(parts: readonly Solved[], offsets: readonly number[], n: number, wanted: number): Solved {
  const all = parts.flatMap(({ values, vectors }, part) =>
    Array.from(values, (value, i) => ({ value, vector: vectors[i] as Float64Array, at: offsets[part] as number })),
  );
  all.sort((a, b) => b.value - a.value);
  return {
    values: Float64Array.from(all, ({ value }) => value),
    vectors: all.slice(0, wanted).map(({ vector, at }) => place(vector, at, n)),
  };
}

/** Splits off the middle row, solves above and below it, and merges. `e` is as long as `d` where the part is not square. */
function divide(d: Float64Array, e: Float64Array, levels: number, wanted: number): Solved {
  if (levels === 0) return smallBidiagonalSvd(d, e);
  const middle = Math.floor(d.length / 2);
  const upper = divide(d.subarray(0, middle), e.subarray(0, middle), levels - 1, Number.POSITIVE_INFINITY);
  const lower = divide(d.subarray(middle + 1), e.subarray(middle + 1), levels - 1, Number.POSITIVE_INFINITY);
  return merge(upper, lower, d[middle] as number, e[middle] as number, wanted);
}

/** A singular pair of a half: z is what the middle row, [… alpha beta …], has of its right vector. */
interface Pair {
  value: number;
  z: number;
  vector: Float64Array;
  /** Where the vector is not zero. */
  from: number;
  to: number;
}

/** lasd1–lasd3: deflate, solve the secular equation, and mix the vectors that are left. */
function merge(upper: Solved, lower: Solved, alpha: number, beta: number, wanted: number): Solved {
  const left = upper.vectors[0]?.length as number;
  const right = lower.vectors[0]?.length as number;
  const width = left + right;
  const pairs: Pair[] = [
    ...Array.from(upper.values, (value, i) => {
      const vector = upper.vectors[i] as Float64Array;
      return { value, z: alpha * (vector[left - 1] as number), vector: place(vector, 0, width), from: 0, to: left };
    }),
    ...Array.from(lower.values, (value, i) => {
      const vector = lower.vectors[i] as Float64Array;
      return { value, z: beta * (vector[0] as number), vector: place(vector, left, width), from: left, to: width };
    }),
  ].sort((a, b) => a.value - b.value);
  const largest = Math.max(Math.abs(alpha), Math.abs(beta), pairs.at(-1)?.value as number);
  const tolerance = 8 * EPSILON * largest;

  // The middle row's own direction: the null vector of the upper half, turned into the lower half's if it has one.
  const nullVector = place(upper.vectors[upper.values.length] as Float64Array, 0, width);
  const first = { value: 0, z: alpha * (nullVector[left - 1] as number), vector: nullVector, from: 0, to: width };
  const lowerNull = lower.vectors[lower.values.length];
  const vectorOfNull = lowerNull && place(lowerNull, left, width);
  if (vectorOfNull) {
    const other = beta * (vectorOfNull[left] as number);
    const length = Math.hypot(first.z, other);
    if (length > tolerance) rotate(nullVector, vectorOfNull, first.z / length, other / length);
    first.z = length;
  }
  if (Math.abs(first.z) <= tolerance) first.z = tolerance;

  const { kept, deflated } = deflate(pairs, tolerance);
  const poles = [first, ...kept];
  if (poles[1] && poles[1].value <= tolerance / 2) poles[1].value = tolerance / 2;
  const solved = [...secularRoots(poles), ...deflated].sort((a, b) => b.value - a.value);
  const values = Float64Array.from(solved, ({ value }) => value);
  const vectors = solved.slice(0, wanted).map((it) => ('vector' in it ? it.vector : mix(poles, it, width)));
  if (vectorOfNull) vectors.push(vectorOfNull);
  return { values, vectors };
}

/** lasd2: pairs that the middle row hardly touches stay as they are; of two with the same value, one is turned out of its way. */
function deflate(pairs: readonly Pair[], tolerance: number): { kept: Pair[]; deflated: Pair[] } {
  const kept: Pair[] = [];
  const deflated: Pair[] = [];
  for (const pair of pairs) {
    const before = kept.at(-1);
    if (Math.abs(pair.z) <= tolerance) {
      deflated.push(pair);
    } else if (before && pair.value - before.value <= tolerance) {
      const length = Math.hypot(before.z, pair.z);
      rotate(before.vector, pair.vector, pair.z / length, -before.z / length);
      pair.z = length;
      pair.from = Math.min(pair.from, before.from);
      pair.to = Math.max(pair.to, before.to);
      deflated.push(before);
      kept[kept.length - 1] = pair;
    } else {
      kept.push(pair);
    }
  }
  return { kept, deflated };
}

/** σ² = pole² + offset, kept apart: the difference to other poles is needed to full relative accuracy. */
interface Root {
  readonly value: number;
  readonly pole: number;
  readonly offset: number;
}

/** The roots of 1 + Σ z_j²/(d_j² − σ²), one above each pole d_j, by bisection from the nearer pole. */
function secularRoots(poles: readonly Pair[]): Root[] {
  const d = Float64Array.from(poles, ({ value }) => value);
  const squares = Float64Array.from(poles, ({ z }) => z * z);
  const total = squares.reduce((a, b) => a + b, 0);
  const gaps = new Float64Array(d.length);
  const above = (offset: number): boolean => {
    let sum = 1;
    for (let j = 0; j < gaps.length; j++) sum += (squares[j] as number) / ((gaps[j] as number) - offset);
    return sum > 0;
  };
  const measureFrom = (pole: number): void => {
    const origin = d[pole] as number;
    for (let j = 0; j < d.length; j++) gaps[j] = ((d[j] as number) - origin) * ((d[j] as number) + origin);
  };
  return Array.from(d, (origin, i) => {
    const isLast = i === d.length - 1;
    let pole = i;
    measureFrom(i);
    let low = 0;
    let high = isLast ? total : (gaps[i + 1] as number) / 2;
    if (!isLast && !above(high)) {
      pole = i + 1;
      measureFrom(pole);
      low = (gaps[i] as number) / 2;
      high = 0;
    }
    for (let halvings = 0; halvings < MOST_HALVINGS; halvings++) {
      const mid = (low + high) / 2;
      if (mid === low || mid === high || high - low <= 1e-14 * Math.abs(mid)) break;
      if (above(mid)) high = mid;
      else low = mid;
    }
    const offset = (low + high) / 2;
    const base = pole === i ? origin : (d[pole] as number);
    return { value: Math.sqrt(base * base + offset), pole, offset };
  });
}

/** lasd3: the right vector with coefficients z_j/(d_j² − σ²); its left one then has a negative entry in the middle row. */
function mix(poles: readonly Pair[], { pole, offset }: Root, width: number): Float64Array {
  const origin = poles[pole]?.value as number;
  const weights = poles.map(({ value, z }) => z / ((value - origin) * (value + origin) - offset));
  const length = Math.sqrt(weights.reduce((sum, w) => sum + w * w, 0));
  const mixed = new Float64Array(width);
  for (const [j, { vector, from, to }] of poles.entries())
    addScaled(mixed, from, (weights[j] as number) / length, vector, from, to - from);
  return mixed;
}

/** The vector at a place in a longer one. */
export function place(vector: Float64Array, at: number, width: number): Float64Array {
  if (vector.length === width) return vector;
  const placed = new Float64Array(width);
  placed.set(vector, at);
  return placed;
}
