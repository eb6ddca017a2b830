/** Compares the gradient and the exact A in a metric with the objective, computed directly in f64. */
import { describe, expect, test } from 'vitest';
import {
  at,
  build,
  byExpert,
  byLowRank,
  diagonalOf,
  each,
  exactA,
  flat,
  identity,
  inverse,
  type LowRankMatrix,
  lowRank,
  type Matrices,
  type Matrix,
  minus,
  mixed,
  normals,
  objective,
  positiveDefinite,
  product,
  reshaped,
  targetsOf,
  times,
  transposed,
  uniform,
  weighted,
} from '../../../fixtures/metric-oracle.js';
import { createEngine } from '../../engine/create-engine.js';
import type { EngineTensor } from '../../engine/engine.js';
import type { Metric } from '../method.js';
import { mobe } from './mobe.js';
import { ACTIVATIONS, type Activation, type Problem, type SharedFactors } from './problem.js';
import { createRefit } from './refit.js';
import { traceGradient } from './varpro-programs.js';
import { WeightedTargets } from './weighted-targets.js';

const engine = await createEngine('onnx-cpu', { threads: 1 });

describe('the gradient is that of the objective, by finite differences', () => {
  const small = { experts: 3, rows: 5, cols: 7, bases: 2, rank: 3 };
  const W = each(3, () => normals(5, 7));
  const same = <T>(it: T): T[] => each(3, () => it);
  const full = each(3, () => positiveDefinite(7, 10));
  const rows = each(3, () => positiveDefinite(5, 10));
  const rowWeights = each(3, () => diagonalOf(each(5, () => 0.2 + 2 * uniform())));
  const columnWeights = diagonalOf(each(7, () => 0.2 + 2 * uniform()));
  const low = each(3, () => lowRank(7, 2, 10));
  const lowRows = each(3, () => lowRank(5, 3, 10));
  const fullOf = (matrices: readonly LowRankMatrix[]): Matrix[] => matrices.map(({ full }) => full);
  const cases: Array<[string, Activation, Matrices, Metric]> = [
    ...ACTIVATIONS.map((activation): [string, Activation, Matrices, Metric] => [
      `C and weights of rows, ${activation}`,
      activation,
      { C: full, P: rowWeights },
      { columns: byExpert(full), rows: byExpert(rowWeights, 'diagonal') },
    ]),
    ['C alone', 'silu', { C: full, P: same(identity(5)) }, { columns: byExpert(full) }],
    ['a full P alone', 'silu', { C: same(identity(7)), P: rows }, { rows: byExpert(rows) }],
    ['both full', 'tanh', { C: full, P: rows }, { columns: byExpert(full), rows: byExpert(rows) }],
    [
      'a C of low rank and weights of rows',
      'silu',
      { C: fullOf(low), P: rowWeights },
      { columns: byLowRank(low), rows: byExpert(rowWeights, 'diagonal') },
    ],
    ['a P of low rank alone', 'silu', { C: same(identity(7)), P: fullOf(lowRows) }, { rows: byLowRank(lowRows) }],
    [
      'both of low rank, C shared by all experts',
      'tanh',
      { C: same((low[0] as LowRankMatrix).full), P: fullOf(lowRows) },
      { columns: byLowRank(low, true), rows: byLowRank(lowRows) },
    ],
    [
      'diagonal C and full P, shared by all experts',
      'tanh',
      { C: same(columnWeights), P: same(rows[0] as Matrix) },
      { columns: byExpert([columnWeights], 'diagonal', true), rows: byExpert(rows, 'full', true) },
    ],
  ];
  const waysOf = (some: typeof cases, ridge: number | undefined) =>
    some.flatMap(([name, ...it]) => {
      const label = ridge ? `${name}, with a ridge` : name;
      return [
        [label, ...it, ridge, false] as const,
        ...(it[2].columns ? [[`${label}, by elimination`, ...it, ridge, true] as const] : []),
      ];
    });
  const smooth = cases.filter(([, activation]) => activation === 'silu' || activation === 'tanh');
  const ways = [...waysOf(cases, undefined), ...waysOf(smooth, 0.03)];
  test.each(ways)('%s', async (_, activation, matrices, metric, ridge, eliminates) => {
    const problem: Problem = { ...small, activation };
    const B = normals(2, 21).flat();
    const alpha = normals(3, 2).flat();
    const X = each(3, (i) => {
      const F = mixed(problem, B, alpha, i);
      const G = product(F, matrices.C[i] as Matrix, transposed(F));
      const lambda = ((ridge ?? 0) * (at(G, 0, 0) + at(G, 1, 1) + at(G, 2, 2))) / 3;
      return inverse(build(3, 3, (k, l) => at(G, k, l) + (k === l ? lambda : 0)));
    });
    const program = await engine.compile(traceGradient(problem, 3, metric, { eliminates, ridge }));
    const stacked = new WeightedTargets(engine, problem, targetsOf(W, metric), true);
    const tensor = (values: readonly number[], shape: number[]) => engine.tensor(Float32Array.from(values), shape);
    const out = await program.run({
      B: tensor(B, [2, 21]),
      alpha: tensor(alpha, [3, 2]),
      ...(!eliminates && { X: tensor(X.flat(2), [3, 3, 3]) }),
      dB0: tensor(new Array(42).fill(0), [2, 21]),
      ...(await stacked.get({ first: 0, count: 3 })),
    });
    const values = async (name: string) => [...(await engine.read(out[name] as EngineTensor))];
    const expected = objective(problem, W, matrices, B, alpha, ridge);
    expect((await values('squared'))[0]).toBeCloseTo(expected, 3);
    const STEP = 1e-5;
    const slopes = (parameters: number[], error: () => number): number[] =>
      parameters.map((value, k) => {
        const errorAt = (moved: number): number => {
          parameters[k] = moved;
          return error();
        };
        const slope = (errorAt(value + STEP) - errorAt(value - STEP)) / (2 * STEP);
        parameters[k] = value;
        return slope;
      });
    for (const [name, parameters] of [
      ['dB', B],
      ['dAlpha', alpha],
    ] as const) {
      const slope = slopes(parameters, () => objective(problem, W, matrices, B, alpha, ridge));
      const largest = Math.max(...slope.map(Math.abs));
      expect(largest).toBeGreaterThan(0.01);
      for (const [k, value] of (await values(name)).entries())
        expect(Math.abs(2 * value - (slope[k] as number)) / largest).toBeLessThan(1e-3);
    }
  });
});

describe('refit', () => {
  const problem: Problem = { experts: 2, rows: 5, cols: 9, bases: 2, rank: 4, activation: 'silu' };
  const factors: SharedFactors = { bases: flat(normals(2, 36)), coefficients: flat(normals(2, 2)) };
  const W = each(2, () => normals(5, 9));
  const C = each(2, () => positiveDefinite(9, 5));
  const weights = each(2, () => diagonalOf(each(9, () => 0.1 + 3 * uniform())));
  const low = each(2, () => lowRank(9, 3, 5));
  test.each<[string, Metric, readonly Matrix[]]>([
    ['a C of low rank', { columns: byLowRank(low) }, low.map(({ full }) => full)],
    ['C by expert', { columns: byExpert(C) }, C],
    ['a shared C', { columns: byExpert(C, 'full', true) }, each(2, () => C[0] as Matrix)],
    ['a diagonal C', { columns: byExpert(weights, 'diagonal') }, weights],
    ['C and P', { columns: byExpert(C), rows: byExpert(each(2, () => positiveDefinite(5, 30))) }, C],
  ])('finds the A of the normal equations: %s', async (_, metric, matrices) => {
    const shared = { B: factors.bases, alpha: factors.coefficients };
    const refit = await mobe.expertFactors(engine, problem, shared, (it) => it, metric);
    for (const i of [1, 0]) {
      const F = mixed(problem, factors.bases, factors.coefficients, i);
      const expected = flat(exactA(W[i] as Matrix, F, matrices[i] as Matrix));
      const largest = Math.max(...expected.map(Math.abs));
      const { A } = await refit.fit(i, flat(W[i] as Matrix));
      for (const [k, value] of (A as Float32Array).entries())
        expect(Math.abs(value - (expected[k] as number)) / largest).toBeLessThan(1e-3);
    }
    await refit.dispose();
  });

  /** On graphics devices, and without a C, A is found by iteration. */
  const ways = [
    ['by elimination', engine, { columns: byExpert(C) }],
    ['by iteration', { ...engine, kind: 'gpu' } as const, { columns: byExpert(C) }],
    ['without a metric', engine, undefined],
  ] as const;
  test.each(ways)(
    'with a ridge finds the A that minimises error + λ‖A‖², and gives its G: %s',
    async (_, on, metric) => {
      const shared = { B: factors.bases, alpha: factors.coefficients };
      const ridge = 0.05;
      const options = { ridge, gram: true };
      const refit = await mobe.expertFactors(on, problem, shared, (it) => it, metric, options);
      for (const i of [1, 0]) {
        const F = mixed(problem, factors.bases, factors.coefficients, i);
        const FC = metric ? times(F, C[i] as Matrix) : F;
        const G = times(FC, transposed(F));
        const mean = G.reduce((sum, row, k) => sum + (row[k] as number), 0) / 4;
        for (const [k, row] of G.entries()) row[k] = (row[k] as number) + ridge * mean;
        const expected = flat(product(W[i] as Matrix, transposed(FC), inverse(G)));
        const found = await refit.fitWithGram?.(i, flat(W[i] as Matrix));
        const close = (values: Float32Array | undefined, wanted: Float32Array): void => {
          const largest = Math.max(...wanted.map(Math.abs));
          for (const [k, value] of wanted.entries())
            expect(Math.abs((values?.[k] as number) - value) / largest).toBeLessThan(1e-4);
        };
        close(found?.factors.A, expected);
        close(found?.gram, flat(G));
        expect(await refit.fit(i, flat(W[i] as Matrix))).toEqual(found?.factors);
      }
      await refit.dispose();
    },
  );

  test('gives no G that it was not asked for', async () => {
    const refit = await createRefit(engine, problem, factors, { columns: byExpert(C) });
    await expect(refit.fitWithGram(0, flat(W[0] as Matrix))).rejects.toThrow(RangeError);
    await refit.dispose();
  });

  test('keeps of its refinements the one that is best in the metric, however uneven that is', async () => {
    const one: Problem = { ...problem, experts: 1, rank: 6, activation: 'tanh' };
    for (const hard of each(12, () => positiveDefinite(9, 1e7))) {
      const bases = normals(2, 54).flat();
      const coefficients = normals(1, 2).flat();
      const shared = { bases: Float32Array.from(bases), coefficients: Float32Array.from(coefficients) };
      const target = normals(5, 9);
      const refit = await createRefit(engine, one, shared, { columns: byExpert([hard]) });
      const F = mixed(one, bases, coefficients, 0);
      const error = (A: Matrix): number => weighted(minus(times(A, F), target), hard, identity(5));
      const fitted = error(reshaped(await refit.fit(0, flat(target)), 5, 6));
      expect(fitted / error(exactA(target, F, hard))).toBeLessThan(1.1);
      await refit.dispose();
    }
  });
});
