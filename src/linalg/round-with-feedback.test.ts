/** Compares blocked rounding with GPTQ's rule as its paper has it: unblocked, in f64, by the Cholesky factor of the inverse. */
import { describe, expect, test } from 'vitest';
import { float8Values } from '../checkpoint/float8.js';
import { createFeedback } from './error-feedback.js';
import { createRandom } from './random.js';
import { type CodeGrid, type FeedbackRounding, type RoundedMatrix, roundWithFeedback } from './round-with-feedback.js';

const random = createRandom(7);
const normals = (count: number): Float32Array => Float32Array.from({ length: count }, () => random.normal());

const integers = (bits: number): CodeGrid => {
  const largest = 2 ** (bits - 1) - 1;
  return { largest, round: (x) => Math.min(largest, Math.max(-largest - 1, Math.round(x))) };
};
const SHARES = Array.from({ length: 11 }, (_, i) => (20 - i) / 20);
const e4m3 = [...float8Values('F8_E4M3')].filter(Number.isFinite).sort((a, b) => a - b);
const fp8: CodeGrid = {
  largest: 448,
  round: (x) => e4m3.reduce((best, code) => (Math.abs(code - x) < Math.abs(best - x) ? code : best)),
};

/** Rounds to bf16. */
function bf16(value: number): number {
  const bits = new Uint32Array(Float32Array.of(value).buffer);
  const [word] = bits as unknown as [number];
  bits[0] = (word + 0x7fff + ((word >>> 16) & 1)) & ~0xffff;
  return new Float32Array(bits.buffer)[0] as number;
}

/** XXᵀ with columns of X that shrink to 1/spread: the condition is about its square. */
function gramOf(size: number, spread: number): Float32Array {
  const X = Array.from({ length: size }, () => normals(2 * size));
  const scale = (k: number): number => spread ** (-k / (2 * size - 1));
  const inner = (i: number, j: number): number =>
    (X[i] as Float32Array).reduce((sum, x, k) => sum + x * ((X[j] as Float32Array)[k] as number) * scale(k) ** 2, 0);
  return Float32Array.from({ length: size * size }, (_, at) => inner(Math.floor(at / size), at % size));
}

const identity = (size: number): Float32Array =>
  Float32Array.from({ length: size * size }, (_, at) => Number(at % (size + 1) === 0));

/** tr(E·G·Eᵀ) */
function errorIn(gram: Float32Array, size: number, values: Float32Array, rounded: Float32Array): number {
  let sum = 0;
  for (let row = 0; row < values.length; row += size) {
    const E = Float64Array.from({ length: size }, (_, j) => (values[row + j] as number) - (rounded[row + j] as number));
    for (let i = 0; i < size; i++)
      for (let j = 0; j < size; j++) sum += (E[i] as number) * (gram[i * size + j] as number) * (E[j] as number);
  }
  return sum;
}

/** The inverse of a positive definite matrix, by Gauss and Jordan. */
function inverse(matrix: readonly Float64Array[]): Float64Array[] {
  const n = matrix.length;
  const M = matrix.map((row, i) => Float64Array.from([...row, ...row.map((_, j) => Number(i === j))]));
  for (const [k, pivot] of M.entries()) {
    const p = pivot[k] as number;
    for (let j = 0; j < 2 * n; j++) pivot[j] = (pivot[j] as number) / p;
    for (const row of M) {
      if (row === pivot) continue;
      const factor = row[k] as number;
      for (let j = 0; j < 2 * n; j++) row[j] = (row[j] as number) - factor * (pivot[j] as number);
    }
  }
  return M.map((row) => row.slice(n));
}

/** Upper T with TᵀT = matrix. */
function upperCholesky(matrix: readonly Float64Array[]): Float64Array[] {
  const n = matrix.length;
  const T = matrix.map(() => new Float64Array(n));
  for (const [i, row] of T.entries())
    for (let j = i; j < n; j++) {
      let sum = matrix[i]?.[j] as number;
      for (let k = 0; k < i; k++) sum -= (T[k]?.[i] as number) * (T[k]?.[j] as number);
      row[j] = i === j ? Math.sqrt(sum) : sum / (row[i] as number);
    }
  return T;
}

/** The scales to try for values of which `extreme` has the largest magnitude. */
function scalesFor(extreme: number, { largest, round }: CodeGrid, signed: boolean): number[] {
  const last = signed && round(Number.NEGATIVE_INFINITY) < -largest ? [round(Number.NEGATIVE_INFINITY)] : [];
  return [Math.abs(extreme) / largest, ...last.map((code) => extreme / code)].flatMap((scale) =>
    SHARES.map((share) => bf16(share * scale)),
  );
}

/** GPTQ, column by column: X_j is moved by the error of each column before it. The scales of a group are those with the least error. */
function reference({ values, gram, grid, scaleGroup, signedScales = false }: Wanted, damping: number): Float32Array {
  const n = Math.sqrt(gram.length);
  const diagonal = Array.from({ length: n }, (_, i) => gram[i * n + i] as number);
  const mean = diagonal.reduce((a, b) => a + b) / n;
  const groups = Array.from({ length: Math.ceil(n / scaleGroup) }, (_, g) => {
    const columns = Array.from({ length: Math.min(scaleGroup, n - g * scaleGroup) }, (_, j) => g * scaleGroup + j);
    columns.sort((a, b) => (diagonal[b] as number) - (diagonal[a] as number));
    return { columns, mean: columns.reduce((sum, j) => sum + (diagonal[j] as number), 0) / columns.length };
  }).sort((a, b) => b.mean - a.mean);
  const order = groups.flatMap(({ columns }) => columns);
  const damped = order.map((i) =>
    Float64Array.from(order, (j) => (gram[i * n + j] as number) + (i === j ? damping * mean : 0)),
  );
  const T = upperCholesky(inverse(damped));
  const result = new Float32Array(values.length);
  for (let row = 0; row < values.length; row += n) {
    let X = Float64Array.from(order, (j) => values[row + j] as number);
    let first = 0;
    for (const { columns } of groups) {
      const extreme = [...X.subarray(first, first + columns.length)].reduce((a, b) =>
        Math.abs(b) > Math.abs(a) ? b : a,
      );
      const tried = scalesFor(extreme, grid, signedScales).map((scale) => {
        const moved = X.slice();
        let loss = 0;
        const rounded = columns.map((_, k) => {
          const j = first + k;
          const code = grid.round((moved[j] as number) / scale) * scale;
          const error = ((moved[j] as number) - code) / (T[j]?.[j] as number);
          loss += error ** 2;
          for (let k = j; k < n; k++) moved[k] = (moved[k] as number) - error * (T[j]?.[k] as number);
          return code;
        });
        return { moved, loss, rounded };
      });
      const best = tried.reduce((a, b) => (b.loss < a.loss ? b : a));
      for (const [k, j] of columns.entries()) result[row + j] = best.rounded[k] as number;
      X = best.moved;
      first += columns.length;
    }
  }
  return result;
}

type Wanted = Omit<FeedbackRounding, 'gram' | 'roundScale' | 'shares'> & { readonly gram: Float32Array };
const rounded = (wanted: Omit<FeedbackRounding, 'roundScale' | 'shares'>) =>
  roundWithFeedback({ ...wanted, shares: SHARES, roundScale: bf16 });

/** Rounds each value by itself, with searched scales. */
const plain = (wanted: Wanted): Float32Array =>
  reference({ ...wanted, gram: identity(Math.sqrt(wanted.gram.length)) }, 0);

describe('before single codes are changed, the result is that of GPTQ by an inverse, column by column:', () => {
  test.each<[string, number, number, CodeGrid, boolean?]>([
    ['one group', 48, 64, integers(4)],
    ['a shorter last group', 150, 64, integers(4)],
    ['groups that are wider than a block', 180, 150, integers(3)],
    ['groups of one block', 140, 128, integers(6)],
    ['fp8', 100, 64, fp8],
    ['signed scales', 100, 64, integers(4), true],
  ])('%s', (_, size, scaleGroup, grid, signedScales = false) => {
    const gram = gramOf(size, 30);
    const wanted = { values: normals(9 * size), gram, grid, scaleGroup, signedScales };
    const { values } = rounded({ ...wanted, refine: false });
    const expected = reference(wanted, 1e-6);
    // A tie may be decided otherwise by the last bits of a sum, and moves what follows in its row.
    const different = [0, 1, 2, 3, 4, 5, 6, 7, 8].filter((row) =>
      expected.subarray(row * size, (row + 1) * size).some((value, j) => value !== values[row * size + j]),
    );
    expect(different).toEqual([]);
  });
});

describe('the error in the metric is less than that of plain rounding', () => {
  const cases = [1, 30, 1000].flatMap((spread) =>
    (
      [
        ['int4', integers(4)],
        ['int5', integers(5)],
        ['int8', integers(8)],
        ['fp8', fp8],
      ] as const
    ).map(([name, grid]) => [name, spread, grid] as const),
  );
  test.each(cases)('%s, spread %d', (_, spread, grid) => {
    const wanted = { values: normals(12 * 96), gram: gramOf(96, spread), grid, scaleGroup: 64 };
    const [fed, alone] = [rounded(wanted).values, plain(wanted)].map((it) =>
      errorIn(wanted.gram, 96, wanted.values, it),
    ) as [number, number];
    expect(fed).toBeLessThan(alone);
    if (spread === 1000) expect(fed).toBeLessThan(0.3 * alone);
  });
});

describe('changing single codes at the end', () => {
  const size = 96;
  const cases = [
    ['int4', integers(4), 0.99],
    ['int8', integers(8), 0.99],
    ['fp8', fp8, 0.9],
  ] as const;
  test.each(cases)('lowers the error of %s', (_, grid, share) => {
    const wanted = { values: normals(12 * size), gram: gramOf(size, 30), grid, scaleGroup: 64 };
    const [refined, before] = [true, false].map((refine) => rounded({ ...wanted, refine })) as [
      RoundedMatrix,
      RoundedMatrix,
    ];
    const [a, b] = [refined, before].map((it) => errorIn(wanted.gram, size, wanted.values, it.values)) as [
      number,
      number,
    ];
    expect(a).toBeLessThan(share * b);
    expect(refined.scales).toEqual(before.scales);
  });

  test('ends where no other code of a small matrix is better', () => {
    // With weak ties between columns, three visits reach the end.
    const gram = Float32Array.of(1, 0.2, 0.1, 0.2, 1, 0.2, 0.1, 0.2, 1);
    const wanted = { values: normals(40 * 3), gram, grid: integers(3), scaleGroup: 3 };
    const { values, scales } = rounded(wanted);
    const least = errorIn(gram, 3, wanted.values, values);
    for (const [at, value] of values.entries())
      for (let code = -4; code < 4; code++) {
        const other = values.slice();
        other[at] = code * (scales[Math.floor(at / 3)] as number);
        if (other[at] !== value) expect(errorIn(gram, 3, wanted.values, other)).toBeGreaterThanOrEqual(least);
      }
  });
});

test('in the identity, and in a metric of zeros, it is plain rounding', () => {
  const wanted = { values: normals(5 * 140), gram: identity(140), grid: integers(5), scaleGroup: 64 };
  const expected = plain(wanted).map((value) => value + 0); // −0 is 0
  expect(rounded(wanted).values).toEqual(expected);
  expect(rounded({ ...wanted, gram: new Float32Array(140 * 140) }).values).toEqual(expected);
});

test('a column of which the metric knows nothing takes no part, and disturbs no other', () => {
  const size = 70;
  const gram = gramOf(size, 30);
  const unknown = [0, 33, 69];
  for (let i = 0; i < size; i++) for (const j of unknown) gram[i * size + j] = gram[j * size + i] = 0;
  const wanted = { values: normals(6 * size), gram, grid: integers(4), scaleGroup: 64 };
  const { values } = rounded(wanted);
  expect(values.every(Number.isFinite)).toBe(true);
  expect(errorIn(gram, size, wanted.values, values)).toBeLessThan(errorIn(gram, size, wanted.values, plain(wanted)));
});

test('a singular metric is damped until it has a factor', () => {
  const size = 40;
  const row = normals(size);
  const gram = Float32Array.from({ length: size * size }, (_, at) =>
    Math.fround((row[Math.floor(at / size)] as number) * (row[at % size] as number)),
  );
  for (let i = 0; i < size; i++) gram[i * size + i] = Math.fround(0.9999 * (gram[i * size + i] as number));
  const wanted = { values: normals(4 * size), gram, grid: integers(4), scaleGroup: 64 };
  const { values } = rounded(wanted);
  expect(values.every(Number.isFinite)).toBe(true);
  expect(errorIn(gram, size, wanted.values, values)).toBeLessThan(errorIn(gram, size, wanted.values, plain(wanted)));
});

test('a metric that has no sense is refused', () => {
  expect(() => createFeedback(Float32Array.of(1, 0, 0, Number.NaN), 2)).toThrow(RangeError);
  expect(() => createFeedback(Float32Array.of(1, 50, 50, 1), 2)).toThrow(/not positive semidefinite/);
});

test('scales give back the values, and zeros and tiny values are kept finite', () => {
  const values = normals(3 * 100);
  values.fill(0, 0, 64);
  values.fill(1e-45, 64, 100);
  const wanted = { values, gram: gramOf(100, 10), grid: integers(4), scaleGroup: 64 };
  const { values: out, scales } = rounded(wanted);
  expect(scales).toHaveLength(6);
  for (const [at, value] of out.entries()) {
    const scale = scales[2 * Math.floor(at / 100) + Math.floor((at % 100) / 64)] as number;
    expect(scale).toBe(bf16(scale));
    const code = value / scale;
    expect(code).toBe(Math.round(code));
    expect(Math.abs(code + 0.5)).toBeLessThanOrEqual(7.5);
  }
  expect(out.subarray(0, 64).every((value) => value === 0)).toBe(true);
});

test('rows can share scales, as in blocks of 128 × 128', () => {
  const wanted = { values: normals(10 * 70), gram: gramOf(70, 100), grid: integers(4), scaleGroup: 32, scaleRows: 4 };
  const { values, scales } = rounded(wanted);
  expect(scales).toHaveLength(3 * 3);
  for (const [at, value] of values.entries()) {
    const scale = scales[3 * Math.floor(at / 70 / 4) + Math.floor((at % 70) / 32)] as number;
    expect(value / scale).toBe(Math.round(value / scale));
  }
  const error = errorIn(wanted.gram, 70, wanted.values, values);
  const alone = rounded({ ...wanted, gram: identity(70) }).values;
  expect(error).toBeLessThan(0.5 * errorIn(wanted.gram, 70, wanted.values, alone));
});

test('with signed scales, the largest value of a group may get the lowest code, and the error is no larger', () => {
  const wanted = { values: normals(40 * 64), gram: gramOf(64, 30), grid: integers(3), scaleGroup: 64 };
  const [signed, plain] = [true, false].map((signedScales) => rounded({ ...wanted, signedScales })) as [
    RoundedMatrix,
    RoundedMatrix,
  ];
  expect(signed.scales.some((scale) => scale < 0)).toBe(true);
  expect(plain.scales.every((scale) => scale > 0)).toBe(true);
  const [a, b] = [signed, plain].map(({ values }) => errorIn(wanted.gram, 64, wanted.values, values)) as [
    number,
    number,
  ];
  expect(a).toBeLessThan(0.95 * b);
});

test('scales that are too large for their dtype are returned as they are', () => {
  const wanted = {
    values: Float32Array.of(3e38, 1),
    gram: identity(2),
    grid: { largest: 1, round: Math.sign },
    scaleGroup: 2,
  };
  const { scales } = roundWithFeedback({
    ...wanted,
    shares: SHARES,
    roundScale: (scale) => (scale > 65504 ? Number.POSITIVE_INFINITY : scale),
  });
  expect([...scales]).toEqual([Number.POSITIVE_INFINITY]);
});
