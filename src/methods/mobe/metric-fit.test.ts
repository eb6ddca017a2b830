/** Whole fits with a metric, and the memory that is planned for them. */
import { createHash } from 'node:crypto';
import { describe, expect, test } from 'vitest';
import { testedEngines } from '../../../fixtures/engines.js';
import {
  at,
  build,
  byExpert,
  byLowRank,
  diagonalOf,
  each,
  flat,
  identity,
  lowRank,
  type Matrices,
  type Matrix,
  minus,
  mixed,
  normal,
  normals,
  positiveDefinite,
  reshaped,
  targetsOf,
  times,
  weighted,
} from '../../../fixtures/metric-oracle.js';
import type { Engine, EngineTensor, Program } from '../../engine/engine.js';
import { encodeOnnx } from '../../engine/onnx/encode.js';
import { elements } from '../../engine/ops.js';
import { OptionError, TensorTooLargeError } from '../../errors.js';
import type { FitState, Metric, StateStore } from '../method.js';
import { solveAdam } from './adam.js';
import { largestBatch, solverBatches } from './batches.js';
import { batchBytes, memory } from './costs.js';
import { ACTIVATIONS, type Problem, type SharedFactors, type SolverOptions } from './problem.js';
import { createRefit } from './refit.js';
import { solveVarpro } from './varpro.js';
import { WeightedTargets } from './weighted-targets.js';

const [engine, ...others] = (await testedEngines()) as [Engine, ...Engine[]];

const OPTIONS: SolverOptions = {
  steps: 40,
  learningRate: undefined,
  batchExperts: 3,
  holdTargets: true,
  seed: 1,
  label: 'test group',
};

/** Experts that are mixtures of two matrices plus noise. */
function related({ experts, rows, cols }: Problem, share: number): Matrix[] {
  const shared = each(2, () => normals(rows, cols));
  return each(experts, () => {
    const noise = normals(rows, cols);
    const weights = each(2, () => normal());
    return build(rows, cols, (i, j) =>
      shared.reduce((sum, M, k) => sum + (weights[k] as number) * at(M, i, j), share * at(noise, i, j)),
    );
  });
}

const problem: Problem = { experts: 7, rows: 12, cols: 24, bases: 3, rank: 8, activation: 'silu' };
const W = related(problem, 0.3);
/** Experts that can be fitted so well that a step that is too large shows. */
const simple = related(problem, 0.01);
const C = each(7, () => positiveDefinite(24, 1e3));
const H = each(7, () => positiveDefinite(12, 1e3));
const uneven = each(7, () => diagonalOf(each(12, (i) => (i % 2 ? 0.05 : 1.95))));
const ones = (size: number) => each(7, () => identity(size));

async function solve(metric: Metric | undefined, options: Partial<SolverOptions> = {}, experts = W) {
  const seen: number[] = [];
  const onStep = ({ loss }: { loss: number }) => seen.push(loss);
  const targets = targetsOf(experts, metric);
  return { ...(await solveVarpro(engine, problem, targets, { ...OPTIONS, onStep, ...options })), seen };
}

/** The mean error of B and α in the metric of C and P, with the A that fits best in C. */
async function errorIn({ C = ones(24), P = ones(12) }: Partial<Matrices>, factors: SharedFactors, metric?: Metric) {
  const refit = await createRefit(engine, problem, factors, metric);
  let sum = 0;
  for (const [i, target] of W.entries()) {
    const A = reshaped(await refit.fit(i, flat(target)), 12, 8);
    const R = minus(times(A, mixed(problem, factors.bases, factors.coefficients, i)), target);
    sum += weighted(R, C[i] as Matrix, P[i] as Matrix);
  }
  await refit.dispose();
  return sum / (7 * 12 * 24);
}

describe('a fit', () => {
  test.each<[string, Metric, Partial<Matrices>, number]>([
    ['C', { columns: byExpert(C) }, { C }, 0.25],
    ['a full P', { rows: byExpert(H) }, { P: H }, 0.25],
    ['weights of rows', { rows: byExpert(uneven, 'diagonal') }, { P: uneven }, 0.4],
    ['C and a full P', { columns: byExpert(C), rows: byExpert(H) }, { C, P: H }, 0.1],
  ])(
    'in a metric has much less error in it than one without, and no less without: %s',
    async (_, metric, matrices, share) => {
      const [within, without] = [await solve(metric), await solve(undefined)];
      const error = await errorIn(matrices, within, metric);
      expect(error).toBeLessThan(share * (await errorIn(matrices, without)));
      expect(await errorIn({}, within, metric)).toBeGreaterThan(await errorIn({}, without));
      // Its own loss is that error.
      expect(Math.abs(within.loss / error - 1)).toBeLessThan(0.01);
      for (const [i, loss] of within.seen.entries())
        expect(loss).toBeLessThanOrEqual(1.5 * Math.min(...within.seen.slice(0, i + 1)));
    },
  );

  test('with the C that all experts share is the fit with that C by expert', async () => {
    const shared = await solve({ columns: byExpert(C, 'full', true) }, { steps: 5 });
    const own = await solve({ columns: byExpert(each(7, () => C[0] as Matrix)) }, { steps: 5 });
    for (const [i, loss] of shared.seen.entries())
      expect(Math.abs(loss / (own.seen[i] as number) - 1)).toBeLessThan(1e-5);
  });

  test('in the identity is the fit without a metric; weights of 2 double its losses', async () => {
    const twos = each(7, () => diagonalOf(new Array(24).fill(2)));
    const plain = await solve(undefined, { steps: 5 });
    for (const [factor, metric] of [
      [1, { columns: byExpert(ones(24)), rows: byExpert(ones(12)) }],
      [1, { rows: byExpert(ones(12), 'diagonal', true) }],
      [2, { columns: byExpert(twos, 'diagonal') }],
    ] as const) {
      const { seen } = await solve(metric, { steps: 5 });
      // With a C, the inverse is found in another way.
      const tolerance = 'columns' in metric ? 1e-4 : 1e-5;
      for (const [i, loss] of seen.entries())
        expect(Math.abs(loss / (factor * (plain.seen[i] as number)) - 1)).toBeLessThan(tolerance);
    }
  });

  test('has the same bits whether targets and metric are kept or read at every step', async () => {
    const metric = { columns: byExpert(C), rows: byExpert(H) };
    expect(await solve(metric, { holdTargets: false })).toEqual(await solve(metric));
  });

  test.each([true, false])(
    'goes on from a saved state to the same bits, undone steps included (held: %s)',
    async (holdTargets) => {
      const metric = { columns: byExpert(C), rows: byExpert(uneven, 'diagonal') };
      const options = { learningRate: 10, holdTargets };
      const { seen: _, ...whole } = await solve(metric, options, simple);
      let asked = 0;
      let saved: FitState | undefined;
      const states: StateStore = {
        load: async () => saved,
        due: () => ++asked === 10,
        save: async (state) => {
          saved = structuredClone(state);
        },
      };
      const onStep = ({ step }: { step: number }): void => {
        if (step === 10) throw new Error('killed');
      };
      const killed = solve(metric, { ...options, states, onStep }, simple);
      await expect(killed).rejects.toThrow('killed');
      expect(saved?.progress?.[2]).toBeGreaterThan(0);
      const { seen, ...resumed } = await solve(metric, { ...options, states }, simple);
      expect(resumed).toEqual(whole);
      expect(seen).toHaveLength(31);
    },
  );

  test('in a matrix of low rank is the fit in all its elements', async () => {
    const low = each(7, () => lowRank(24, 5, 100));
    const lowRows = each(7, () => lowRank(12, 3, 100));
    const full = { columns: byExpert(low.map((it) => it.full)), rows: byExpert(lowRows.map((it) => it.full)) };
    const { seen } = await solve({ columns: byLowRank(low), rows: byLowRank(lowRows) }, { steps: 5 });
    const expected = await solve(full, { steps: 5 });
    for (const [i, loss] of seen.entries())
      expect(Math.abs(loss / (expected.seen[i] as number) - 1)).toBeLessThan(1e-4);
  });

  test('on a graphics device tracks the inverse, and finds about the same', async () => {
    const device: Engine = { ...engine, kind: 'gpu' };
    const metric = { columns: byExpert(C), rows: byExpert(uneven, 'diagonal') };
    const options = { ...OPTIONS, steps: 5 };
    const tracked = await solveVarpro(device, problem, targetsOf(W, metric), options);
    const eliminated = await solveVarpro(engine, problem, targetsOf(W, metric), options);
    expect(Math.abs(tracked.loss / eliminated.loss - 1)).toBeLessThan(1e-3);
  });

  test('of experts that one basis gives exactly goes on where its loss is noise', async () => {
    const [first] = W as [Matrix];
    const exact: Problem = { ...problem, bases: 1, rank: 12, activation: 'none' };
    const targets = targetsOf(
      each(7, () => first),
      { columns: byExpert(C) },
    );
    const { steps, loss } = await solveVarpro(engine, exact, targets, OPTIONS);
    expect(steps).toBeGreaterThan(1);
    expect(Math.abs(loss)).toBeLessThan(1e-6);
  });

  test('takes a matrix where it is in memory, if a batch has one expert', async () => {
    const bits = C.map(flat);
    const columns = byExpert(C);
    const viewed = { ...columns, view: (expert: number) => bits[expert] as Float32Array, read: () => expect.fail() };
    const options = { batchExperts: 1, steps: 5 };
    expect(await solve({ columns: viewed }, options)).toEqual(await solve({ columns }, options));
  });

  test('agrees on all engines', async () => {
    const low = each(7, () => lowRank(24, 5, 100));
    const metrics: Metric[] = [
      { columns: byLowRank(low), rows: byLowRank(each(7, () => lowRank(12, 3, 100))) },
      { columns: byExpert(C), rows: byExpert(H, 'full', true) },
      { columns: byExpert(C, 'full', true), rows: byExpert(uneven, 'diagonal') },
    ];
    for (const metric of metrics) {
      const options = { ...OPTIONS, steps: 5 };
      const expected = await solveVarpro(engine, problem, targetsOf(W, metric), options);
      for (const other of others) {
        const { loss } = await solveVarpro(other, problem, targetsOf(W, metric), options);
        expect(Math.abs(loss / expected.loss - 1), other.name).toBeLessThan(1e-4);
      }
    }
  });

  test('by adam has no metric, and says so', async () => {
    const refused = solveAdam(engine, problem, targetsOf(W, { columns: byExpert(C) }), OPTIONS, 1);
    await expect(refused).rejects.toThrow(OptionError);
    await expect(refused).rejects.toThrow('Use varpro');
  });
});

// The hash changed when A became a solution by blocks. A change of it changes every fit.
test('without a metric the programs are those whose results were measured', async () => {
  const hash = createHash('sha256');
  const spy: Engine = {
    ...engine,
    compile: (graph) => {
      hash.update(encodeOnnx(graph));
      return engine.compile(graph);
    },
  };
  for (const activation of ACTIVATIONS) {
    const it = { ...problem, activation };
    const factors = await solveVarpro(spy, it, targetsOf(W), { ...OPTIONS, steps: 1 });
    await createRefit(spy, it, factors);
  }
  expect(hash.digest('hex')).toBe('464b8b4fa63385d256be7049d9fde54e70e5341cc53a9464803116e0bb29befd');
});

describe('a ridge in the fit', () => {
  /** The share of A's rounding error that reaches W, as a multiple: Σ_k ‖A_:k‖²‖F_k:‖² / ‖W‖². */
  async function amplification(factors: SharedFactors, ridge: number | undefined, metric?: Metric): Promise<number> {
    const refit = await createRefit(engine, problem, factors, metric, { ridge });
    let [sum, norm] = [0, 0];
    for (const [i, target] of W.entries()) {
      const A = await refit.fit(i, flat(target));
      const F = mixed(problem, factors.bases, factors.coefficients, i);
      for (const [k, row] of F.entries()) {
        const own = A.filter((_, at) => at % 8 === k).reduce((squares, a) => squares + a * a, 0);
        sum += own * row.reduce((squares, f) => squares + f * f, 0);
      }
      norm += target.flat().reduce((squares, w) => squares + w * w, 0);
    }
    await refit.dispose();
    return sum / norm;
  }

  test.each<[string, Metric | undefined]>([
    ['without a metric', undefined],
    ['in a metric', { columns: byExpert(C) }],
  ])('gives factors that multiply rounding errors less: %s', async (_, metric) => {
    const without = await solve(metric);
    const within = await solve(metric, { ridge: 1e-2 });
    expect(await amplification(within, 1e-2, metric)).toBeLessThan(
      0.85 * (await amplification(without, undefined, metric)),
    );
    expect(within.loss).toBeGreaterThan(without.loss);
  });

  test('of the size that is taken anyway changes next to nothing', async () => {
    const { seen } = await solve(undefined, { steps: 3 });
    const { seen: within } = await solve(undefined, { ridge: 1e-6, steps: 3 });
    for (const [i, loss] of within.entries()) expect(Math.abs(loss / (seen[i] as number) - 1)).toBeLessThan(1e-4);
  });
});

describe('memory:', () => {
  const metric: Metric = { columns: byExpert(C), rows: byExpert(H, 'full', true) };
  const sizes = { solver: 'varpro', holdTargets: true, batchExperts: 3 };

  test('the identity counts nothing', () => {
    expect(batchBytes(problem, {})).toBe(batchBytes(problem));
    expect(memory(problem, { ...sizes, metric: {} })).toEqual(memory(problem, sizes));
  });

  test.each([true, false])('what is held is what is counted (targets held: %s)', async (holdTargets) => {
    let alive = 0;
    const counted = <T extends EngineTensor>(tensor: T): T => {
      const bytes = 4 * elements(tensor.shape);
      const dispose = tensor.dispose.bind(tensor);
      alive += bytes;
      return Object.assign(tensor, {
        dispose: () => {
          alive -= bytes;
          dispose();
        },
      });
    };
    const counting: Engine = {
      ...engine,
      tensor: (data, shape) => counted(engine.tensor(data, shape)),
      compile: async (graph) => {
        const program = await engine.compile(graph);
        const run: Program['run'] = async (inputs) => {
          const outputs = await program.run(inputs);
          for (const tensor of Object.values(outputs)) counted(tensor);
          return outputs;
        };
        return { run, dispose: () => program.dispose() };
      },
    };
    const stacked = new WeightedTargets(counting, problem, targetsOf(W, metric), holdTargets);
    const batches = solverBatches(engine, problem, 3);
    for (const range of [...batches, ...batches]) await stacked.get(range);
    // Without held targets, W, WC and C of the last batch are counted.
    const batch = holdTargets ? 0 : 4 * 3 * (2 * 12 * 24 + 24 * 24);
    expect(memory(problem, { ...sizes, holdTargets, metric }).targets).toBe(alive - batch);
    await stacked.dispose();
    expect(alive).toBe(0);
  });

  test("an expert of a batch takes its own matrices, FC, WC, RC and P(RC) more; a shared matrix is not the batch's", () => {
    const more = 4 * (24 * 24 + 8 * 24 + 3 * 12 * 24);
    expect(batchBytes(problem, metric) - batchBytes(problem)).toBe(more);
    const own = { ...metric, rows: byExpert(H, 'diagonal') };
    expect(batchBytes(problem, own) - batchBytes(problem)).toBe(more + 4 * 12);
    // W C is not kept if C is of low rank: its own Z and c, FC, RC, FZ, RZ and a copy of Z.
    const low = { columns: byLowRank(each(7, () => lowRank(24, 5, 1))) };
    const lowMore = 4 * (24 * 5 + 1 + 8 * 24 + 12 * 24 + (8 + 12 + 24) * 5);
    expect(batchBytes(problem, low) - batchBytes(problem)).toBe(lowMore);
    expect(memory(problem, { ...sizes, metric: low }).targets).toBe(4 * 7 * (12 * 24 + 24 * 5 + 1));
    expect(memory(problem, { ...sizes, batchExperts: 1, metric: low }).targets).toBe(4 * 7 * 12 * 24);
  });

  test('a matrix of the metric fits the device, or is refused with a remedy', () => {
    const small = { name: 'small', device: 'a small device', kind: 'gpu', maxTensorBytes: 5000 } as const;
    expect(largestBatch(problem, small)).toBe(4);
    expect(largestBatch(problem, small, metric)).toBe(2);
    const tooSmall = { ...small, maxTensorBytes: 4 * 24 * 24 - 1 };
    const refusal = () => largestBatch({ ...problem, bases: 1 }, tooSmall, metric);
    expect(refusal).toThrow(TensorTooLargeError);
    expect(refusal).toThrow('The matrices of the metric');
  });
});
