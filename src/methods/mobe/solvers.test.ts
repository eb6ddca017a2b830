import { readFileSync } from 'node:fs';
import { beforeAll, describe, expect, test } from 'vitest';
import { REFERENCE_CURVES, TINY_MODEL } from '../../../fixtures/paths.js';
import { THOROUGH } from '../../../fixtures/thorough.js';
import { decodeFloats } from '../../checkpoint/codec.js';
import { openCheckpoint } from '../../checkpoint/open-checkpoint.js';
import { createEngine } from '../../engine/create-engine.js';
import { addMoments, deviation, measureMoments, NO_MOMENTS } from '../../linalg/moments.js';
import { createRandom } from '../../linalg/random.js';
import { detectModel } from '../../models/detect.js';
import type { Projection } from '../../models/family.js';
import { LocalFiles } from '../../sources/files.js';
import type { FitStep, Targets } from '../method.js';
import { solveAdam } from './adam.js';
import type { Activation, Problem, SolverOptions } from './problem.js';
import { createReconstruction } from './reconstruct.js';
import { createRefit } from './refit.js';
import { solveVarpro } from './varpro.js';

const engine = await createEngine('onnx-cpu', { threads: 1 });
const OPTIONS: SolverOptions = {
  steps: 60,
  learningRate: undefined,
  batchExperts: 100,
  holdTargets: true,
  seed: 1,
  label: 'test group',
};

const targetsOf = (experts: Float32Array[], sigma = 1): Targets => ({
  read: (expert, target) => target.set((experts[expert] as Float32Array).map((value) => value / sigma)),
});

/** Experts that share structure: each is a random mixture of a few matrices, plus noise. */
function syntheticExperts({ experts, rows, cols }: Pick<Problem, 'experts' | 'rows' | 'cols'>): Float32Array[] {
  const random = createRandom(5);
  const normals = () => Float32Array.from({ length: rows * cols }, () => random.normal());
  const shared = [normals(), normals(), normals()];
  return Array.from({ length: experts }, () => {
    const noise = normals();
    const weights = shared.map(() => random.normal());
    return noise.map(
      (value, i) =>
        0.3 * value + shared.reduce((sum, matrix, k) => sum + (weights[k] as number) * (matrix[i] as number), 0),
    );
  });
}

async function squaredError(
  problem: Problem,
  targets: Targets,
  factors: Parameters<typeof createRefit>[2],
): Promise<number> {
  const refit = await createRefit(engine, problem, factors);
  const reconstruction = await createReconstruction(engine, problem, factors);
  const W = new Float32Array(problem.rows * problem.cols);
  let error = 0;
  for (let expert = 0; expert < problem.experts; expert++) {
    targets.read(expert, W);
    const rebuilt = await reconstruction.expert(expert, await refit.fit(expert, W));
    error += W.reduce((sum, value, i) => sum + (value - (rebuilt[i] as number)) ** 2, 0);
  }
  await refit.dispose();
  await reconstruction.dispose();
  return error / (problem.experts * W.length);
}

describe('varpro', () => {
  const shapes: Array<[string, Problem]> = [
    ['the usual', { experts: 8, rows: 12, cols: 40, bases: 3, rank: 12, activation: 'silu' }],
    ['tanh', { experts: 8, rows: 12, cols: 40, bases: 3, rank: 12, activation: 'tanh' }],
    ['experts no multiple of bases', { experts: 7, rows: 12, cols: 40, bases: 3, rank: 12, activation: 'silu' }],
    ['rank below the rows', { experts: 6, rows: 12, cols: 40, bases: 4, rank: 5, activation: 'silu' }],
    ['several leaves', { experts: 3, rows: 140, cols: 160, bases: 2, rank: 131, activation: 'silu' }],
    ['one expert', { experts: 1, rows: 12, cols: 40, bases: 1, rank: 6, activation: 'silu' }],
    ['one basis', { experts: 6, rows: 12, cols: 40, bases: 1, rank: 12, activation: 'tanh' }],
    ['more bases than experts', { experts: 3, rows: 20, cols: 40, bases: 5, rank: 3, activation: 'silu' }],
    ['more rows than columns', { experts: 4, rows: 40, cols: 12, bases: 2, rank: 6, activation: 'silu' }],
    ...(['gelu', 'relu', 'sigmoid', 'none'] as const).map((activation): [string, Problem] => [
      activation,
      { experts: 8, rows: 12, cols: 40, bases: 3, rank: 12, activation },
    ]),
    ['one row', { experts: 4, rows: 1, cols: 16, bases: 2, rank: 1, activation: 'silu' }],
  ];
  test.each(shapes)('reduces the loss steadily, and the refit reaches it: %s', async (_, problem) => {
    const targets = targetsOf(syntheticExperts(problem));
    const losses: number[] = [];
    const solution = await solveVarpro(engine, problem, targets, {
      ...OPTIONS,
      onStep: ({ loss }) => losses.push(loss),
    });
    expect(losses).toHaveLength(60);
    expect(solution.loss).toBeLessThanOrEqual(losses.at(-1) as number);
    expect(solution.loss).toBeLessThan(0.9 * (losses[0] as number));
    for (const [i, loss] of losses.entries())
      expect(loss).toBeLessThanOrEqual(1.5 * Math.min(...losses.slice(0, i + 1)));
    const refitted = await squaredError(problem, targets, solution);
    expect(Math.abs(refitted / solution.loss - 1)).toBeLessThan(1e-2);
    expect(refitted).toBeLessThan(solution.loss * 1.001);
  });

  test('batches, decoded once or every step, lead to the same losses within a percent', async () => {
    const problem: Problem = { experts: 8, rows: 12, cols: 40, bases: 3, rank: 12, activation: 'silu' };
    const targets = targetsOf(syntheticExperts(problem));
    const first = async (options: Partial<SolverOptions>) => {
      const losses: number[] = [];
      await solveVarpro(engine, problem, targets, {
        ...OPTIONS,
        steps: 5,
        ...options,
        onStep: ({ loss }) => losses.push(loss),
      });
      return losses;
    };
    const whole = await first({});
    for (const options of [{ batchExperts: 3 }, { batchExperts: 1, holdTargets: false }]) {
      for (const [i, loss] of (await first(options)).entries())
        expect(Math.abs(loss / (whole[i] as number) - 1)).toBeLessThan(0.01);
    }
  });

  test('the same seed gives the same bits, another seed others', async () => {
    const problem: Problem = { experts: 4, rows: 8, cols: 24, bases: 2, rank: 8, activation: 'silu' };
    const targets = targetsOf(syntheticExperts(problem));
    const bases = async (seed: number) =>
      (await solveVarpro(engine, problem, targets, { ...OPTIONS, steps: 10, seed })).bases;
    expect(await bases(1)).toEqual(await bases(1));
    expect(await bases(1)).not.toEqual(await bases(2));
  });

  test('ends before its last planned step when nothing is left to gain', async () => {
    // One basis of one row, and experts that share nothing: little can be fitted.
    const problem: Problem = { experts: 4, rows: 6, cols: 30, bases: 1, rank: 1, activation: 'tanh' };
    const noise = syntheticExperts({ experts: 1, rows: 1, cols: 4 * 180 })[0] as Float32Array;
    const experts = [0, 1, 2, 3].map((e) => noise.slice(e * 180, (e + 1) * 180));
    const steps: FitStep[] = [];
    const options = { ...OPTIONS, steps: 2000, onStep: (step: FitStep) => steps.push(step) };
    const solution = await solveVarpro(engine, problem, targetsOf(experts), options);
    expect(solution.steps).toBeLessThan(1000);
    expect(steps.at(-1)?.steps).toBe(solution.steps);
  });

  test('reports each step with its loss, its rate and the time left', async () => {
    const problem: Problem = { experts: 4, rows: 8, cols: 24, bases: 2, rank: 8, activation: 'silu' };
    const steps: FitStep[] = [];
    await solveVarpro(engine, problem, targetsOf(syntheticExperts(problem)), {
      ...OPTIONS,
      steps: 30,
      onStep: (step) => steps.push(step),
    });
    expect(steps.map(({ step }) => step)).toEqual(Array.from({ length: 30 }, (_, i) => i + 1));
    for (const { loss, rate, secondsLeft, step } of steps) {
      expect(loss).toBeGreaterThan(0);
      expect(rate).toBeGreaterThan(0);
      if (step > 1) expect(secondsLeft).toBeGreaterThan(0);
    }
    expect(steps.at(-1)?.rate).toBeLessThan(steps[0]?.rate as number);
  });

  test('a learning rate far too high is undone until it fits, and never leaves NaN', async () => {
    const problem: Problem = { experts: 8, rows: 12, cols: 40, bases: 3, rank: 12, activation: 'silu' };
    const targets = targetsOf(syntheticExperts(problem));
    const losses: number[] = [];
    const solution = await solveVarpro(engine, problem, targets, {
      ...OPTIONS,
      learningRate: 1000,
      onStep: ({ loss }) => losses.push(loss),
    });
    expect([...solution.bases, ...solution.coefficients].every(Number.isFinite)).toBe(true);
    expect(solution.loss).toBeLessThanOrEqual(losses[0] as number);
  });

  test('its gradient is the slope of its loss', async () => {
    // With a very small rate, to first order, the loss falls by the sum of the moves times their gradients.
    const problem: Problem = { experts: 5, rows: 10, cols: 30, bases: 2, rank: 10, activation: 'tanh' };
    const targets = targetsOf(syntheticExperts(problem));
    const fall = async (learningRate: number) => {
      const losses: number[] = [];
      await solveVarpro(engine, problem, targets, {
        ...OPTIONS,
        steps: 3,
        learningRate,
        onStep: ({ loss }) => losses.push(loss),
      });
      return (losses[0] as number) - (losses[1] as number);
    };
    expect(await fall(1e-3)).toBeGreaterThan(0);
  });
});

describe('on the trained fixture', () => {
  const problem = (activation: Activation): Problem => ({
    experts: 32,
    rows: 64,
    cols: 192,
    bases: 8,
    rank: 64,
    activation,
  });
  const reference = JSON.parse(readFileSync(REFERENCE_CURVES, 'utf8'));
  let experts: Float32Array[];
  let sigma: number;
  const readGroup = async (layer: number, projection: Projection) => {
    const { layers } = detectModel(await openCheckpoint(TINY_MODEL));
    const reader = new LocalFiles();
    const tensors = layers[layer]?.experts[projection] ?? [];
    const weights = await Promise.all(
      tensors.map(async (tensor) => {
        const values = new Float32Array(64 * 192);
        decodeFloats('BF16', await reader.readRange(tensor.data), values);
        return values;
      }),
    );
    await reader.close();
    return { weights, deviation: deviation(weights.map(measureMoments).reduce(addMoments, NO_MOMENTS)) };
  };
  beforeAll(async () => {
    ({ weights: experts, deviation: sigma } = await readGroup(1, 'gate_proj'));
  });

  // After some hundred steps, rounding decides the curve's details: versions of PyTorch then differ by a percent from each
  // other.
  for (const [layer, projection, activation, steps, cost] of [
    [1, 'gate_proj', 'silu', 800, THOROUGH],
    [1, 'gate_proj', 'tanh', 100, {}],
    [1, 'up_proj', 'silu', 100, {}],
    [1, 'up_proj', 'tanh', 100, THOROUGH],
    [3, 'gate_proj', 'tanh', 100, THOROUGH],
  ] as const)
    test(
      `adam is on the curve of the public reference: layer ${layer} ${projection}, ${activation}, ${steps} steps`,
      cost,
      async () => {
        const { weights, deviation } = await readGroup(layer, projection);
        const losses: number[] = [];
        const onStep = ({ step, loss }: FitStep): void => {
          losses[step] = loss;
        };
        const options = { ...OPTIONS, steps, batchExperts: activation === 'tanh' ? 12 : 32, onStep };
        await solveAdam(engine, problem(activation), targetsOf(weights, deviation), options, deviation);
        for (const [epoch, loss] of reference.curves[`layer${layer}.${projection}.${activation}`].curve) {
          if (epoch > steps) continue;
          const deviates = Math.abs((losses[epoch] as number) / loss - 1);
          expect(deviates, `step ${epoch}`).toBeLessThan(epoch <= 100 ? 1e-4 : 0.06);
        }
      },
    );

  // At its 10 000th step the reference is at 0.0435 (silu) and 0.0410 (tanh). The best that it kept is 0.0426 and 0.0410.
  for (const [activation, steps, level, cost] of [
    ['silu', 100, 0.55, {}],
    ['tanh', 100, 0.55, {}],
    ['silu', 400, 0.0426, THOROUGH],
    ['tanh', 400, 0.041, THOROUGH],
  ] as const)
    test(`varpro is far ahead of the reference: ${activation}, ${steps} steps`, cost, async () => {
      const { curve } = reference.curves[`layer1.gate_proj.${activation}`] as { curve: [number, number][] };
      const there = curve.find(([epoch]) => epoch === steps)?.[1] as number;
      const targets = targetsOf(experts, sigma);
      const solution = await solveVarpro(engine, problem(activation), targets, { ...OPTIONS, steps });
      expect(solution.loss).toBeLessThan(steps === 100 ? level * there : level);
    });
});

describe('refit', () => {
  test('leaves a residual orthogonal to every row of f(αB): it is the least-squares fit', async () => {
    const problem: Problem = { experts: 1, rows: 6, cols: 30, bases: 2, rank: 8, activation: 'tanh' };
    const random = createRandom(3);
    const normals = (count: number) => Float32Array.from({ length: count }, () => random.normal());
    const factors = { bases: normals(2 * 8 * 30), coefficients: normals(2) };
    const W = normals(6 * 30);
    const refit = await createRefit(engine, problem, factors);
    const A = await refit.fit(0, W);
    const identity = Float32Array.from({ length: 64 }, (_, i) => Number(i % 9 === 0));
    const F = await (await createReconstruction(engine, { ...problem, rows: 8 }, factors)).expert(0, identity);
    for (let row = 0; row < 6; row++) {
      for (let k = 0; k < 8; k++) {
        let inner = 0;
        for (let x = 0; x < 30; x++) {
          let rebuilt = 0;
          for (let j = 0; j < 8; j++) rebuilt += (A[row * 8 + j] as number) * (F[j * 30 + x] as number);
          inner += ((W[row * 30 + x] as number) - rebuilt) * (F[k * 30 + x] as number);
        }
        expect(Math.abs(inner)).toBeLessThan(1e-4);
      }
    }
  });

  test('stays finite where the mixed bases are linearly dependent', async () => {
    const problem: Problem = { experts: 1, rows: 3, cols: 10, bases: 1, rank: 4, activation: 'tanh' };
    const row = Float32Array.from({ length: 10 }, (_, i) => Math.sin(i));
    const bases = Float32Array.from({ length: 40 }, (_, i) => row[i % 10] as number);
    const refit = await createRefit(engine, problem, { bases, coefficients: Float32Array.of(1) });
    expect([...(await refit.fit(0, new Float32Array(30).fill(1)))].every(Number.isFinite)).toBe(true);
  });
});

describe('moments', () => {
  test('σ is the unbiased standard deviation, whatever the split', () => {
    const values = Float32Array.from({ length: 1000 }, (_, i) => Math.sin(i) + 3);
    const mean = values.reduce((a, b) => a + b) / 1000;
    const expected = Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / 999);
    const split = addMoments(measureMoments(values.subarray(0, 300)), measureMoments(values.subarray(300)));
    expect(deviation(split)).toBeCloseTo(expected, 10);
  });
  test('NaN and infinities are counted', () => {
    expect(measureMoments(Float32Array.of(1, Number.NaN, Number.POSITIVE_INFINITY)).nonFinite).toBe(2);
  });
  test('equal values have none, however large', () =>
    expect(deviation(measureMoments(new Float32Array(999).fill(0.1)))).toBe(0));
});

test('random numbers: uniform in [0,1), normal with unit variance, streams independent', () => {
  const random = createRandom(1);
  const normals = Array.from({ length: 20000 }, () => random.normal());
  const variance = normals.reduce((sum, value) => sum + value * value, 0) / normals.length;
  expect(Math.abs(variance - 1)).toBeLessThan(0.05);
  for (let i = 0; i < 1000; i++) expect(random.below(7)).toBeLessThan(7);
  expect(createRandom(1, 2).uniform()).not.toBe(createRandom(1, 3).uniform());
  expect(createRandom(2 ** 40 + 1).uniform()).not.toBe(createRandom(1).uniform());
});
