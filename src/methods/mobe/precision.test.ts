/** Fits whose products are in TF32, simulated: docs/solver.md has what that does to the fixture. */
import { describe, expect, test } from 'vitest';
import {
  byExpert,
  diagonalOf,
  each,
  type Matrix,
  positiveDefinite,
  targetsOf,
} from '../../../fixtures/metric-oracle.js';
import { createEngine } from '../../engine/create-engine.js';
import type { Engine, EngineTensor } from '../../engine/engine.js';
import { simulateTensorCores } from '../../engine/tensor-cores.js';
import { createRandom } from '../../linalg/random.js';
import type { Metric } from '../method.js';
import { identityLeaves, leafShape } from './block-solve.js';
import type { Problem, SolverOptions } from './problem.js';
import { createReconstruction } from './reconstruct.js';
import { createRefit } from './refit.js';
import { solveVarpro } from './varpro.js';
import { traceGradient, traceRestart } from './varpro-programs.js';

const cpu = await createEngine('onnx-cpu', { threads: 1 });
const simulated = simulateTensorCores(cpu);
/** The same on what calls itself a graphics device, where leaves are tracked in a metric too. */
const device: Engine = { ...simulated, kind: 'gpu' };

const OPTIONS: SolverOptions = {
  ...{ steps: 20, learningRate: undefined, batchExperts: 5, holdTargets: true, seed: 1, label: 'test group' },
};

/** Experts that are mixtures of three matrices plus noise. */
function related({ experts, rows, cols }: Problem): Matrix[] {
  const random = createRandom(9);
  const normals = (): number[] => each(rows * cols, () => random.normal());
  const shared = [normals(), normals(), normals()];
  return each(experts, () => {
    const noise = normals();
    const weights = shared.map(() => random.normal());
    const value = (at: number): number =>
      shared.reduce((sum, it, k) => sum + (weights[k] as number) * (it[at] as number), noise[at] as number);
    return each(rows, (i) => each(cols, (j) => value(i * cols + j)));
  });
}

const problem: Problem = { experts: 12, rows: 24, cols: 64, bases: 4, rank: 24, activation: 'silu' };
const leaves: Problem = { experts: 3, rows: 140, cols: 160, bases: 2, rank: 131, activation: 'silu' };

async function losses(engine: Engine, it: Problem, metric: Metric | undefined, options: Partial<SolverOptions>) {
  const seen: number[] = [];
  const onStep = ({ loss }: { loss: number }) => seen.push(loss);
  const { loss } = await solveVarpro(engine, it, targetsOf(related(it), metric), { ...OPTIONS, ...options, onStep });
  return [...seen, loss];
}

const C = each(12, () => positiveDefinite(64, 1e3));
const uneven = each(12, () => diagonalOf(each(24, (i) => (i % 2 ? 0.05 : 1.95))));
const ways: Array<[string, Problem, Metric | undefined, Partial<SolverOptions>]> = [
  ['a plain one', problem, undefined, {}],
  ['one of several leaves', leaves, undefined, {}],
  ['one with a ridge', problem, undefined, { ridge: 1e-3 }],
  ['one in a metric', problem, { columns: byExpert(C), rows: byExpert(uneven, 'diagonal') }, {}],
  ['one with weights of rows alone', problem, { rows: byExpert(uneven, 'diagonal') }, {}],
];

describe.each([
  ['a CPU', simulated],
  ['a graphics device', device],
])('a fit in TF32 on %s has the losses of f32:', (_, engine) => {
  test.each(ways)('%s', async (_name, it, metric, options) => {
    const expected = await losses(cpu, it, metric, options);
    const found = await losses(engine, it, metric, { ...options, precision: 'tf32' });
    expect(found).toHaveLength(expected.length);
    expect(found).not.toEqual(expected);
    const apart = expected.map((loss, i) => Math.abs((found[i] as number) / loss - 1));
    // Steps of small groups pass differences on. In a group like the fixture's the last is that of all (streams/operations/precision.test.ts).
    expect(Math.max(...apart)).toBeLessThan(0.01);
    expect(apart.at(-1)).toBeLessThan(0.003);
  });
});

test('A that is refined has a loss much nearer to that of f32', async () => {
  const [n, p, d, m, r] = [2, 40, 60, 2, 40];
  const it: Problem = { experts: n, rows: p, cols: d, bases: m, rank: r, activation: 'silu' };
  const random = createRandom(4);
  const row = Float32Array.from({ length: d }, () => random.normal());
  // The rows of a basis have much in common, so that A has large numbers that cancel.
  const B = Float32Array.from({ length: m * r * d }, (_, i) => ((row[i % d] as number) + random.normal()) / 2);
  const normals = (count: number) => Float32Array.from({ length: count }, () => random.normal());
  const inputs = {
    B: cpu.tensor(B, [m, r * d]),
    alpha: cpu.tensor(normals(n * m), [n, m]),
    W: cpu.tensor(normals(n * p * d), [n, p, d]),
    dB0: cpu.tensor(new Float32Array(m * r * d), [m, r * d]),
  };
  const restart = await cpu.compile(traceRestart(it, n));
  let X = cpu.tensor(identityLeaves(n, r), leafShape(n, r));
  for (let round = 0; round < 3; round++) X = (await restart.run({ ...inputs, X })).X as EngineTensor;
  const loss = async (engine: Engine, refines: boolean): Promise<number> => {
    const program = await engine.compile(traceGradient(it, n, undefined, { refines }), 'tf32');
    const { squared } = await program.run({ ...inputs, X });
    return (await engine.read(squared as EngineTensor))[0] as number;
  };
  const exact = await loss(cpu, false);
  const [rounded, refined] = [await loss(simulated, false), await loss(simulated, true)];
  expect(Math.abs(refined - exact)).toBeLessThan(Math.abs(rounded - exact) / 5);
  expect(Math.abs((await loss(cpu, true)) / exact - 1)).toBeLessThan(1e-5);
});

/** The precisions that a fit and what follows it ask for, by the programs' outputs. */
async function asked(metric: Metric | undefined, precision: SolverOptions['precision']) {
  const fit = new Map<string, string | undefined>();
  const rest = new Set<string | undefined>();
  let fitting = true;
  const spy: Engine = {
    ...simulated,
    compile: (graph, own) => {
      if (fitting) fit.set([...graph.outputs.keys()].join(' '), own);
      else rest.add(own);
      return simulated.compile(graph, own);
    },
  };
  const found = await solveVarpro(spy, problem, targetsOf(related(problem), metric), {
    ...OPTIONS,
    steps: 1,
    precision,
  });
  fitting = false;
  await createRefit(spy, problem, found, metric);
  await createReconstruction(spy, problem, found);
  return { fit: Object.fromEntries(fit), rest: [...rest] };
}

test('steps ask for TF32; the start, the last A and what is rebuilt are in f32', async () => {
  expect(await asked(undefined, 'tf32')).toEqual({
    fit: { 'X residual squared dB dAlpha': 'tf32', 'X residual': 'tf32', 'M Q B': 'tf32', B: undefined },
    rest: [undefined],
  });
  const { fit, rest } = await asked(undefined, undefined);
  expect(new Set([...Object.values(fit), ...rest])).toEqual(new Set([undefined]));
});

test('in a metric of columns only the steps of the bases ask for it', async () => {
  const { fit, rest } = await asked({ columns: byExpert(C) }, 'tf32');
  expect(fit).toEqual({ 'squared dB dAlpha': 'f32', WC: undefined, 'M Q B': 'tf32', B: undefined });
  expect(rest).toEqual([undefined]);
});
