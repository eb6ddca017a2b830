/** A fit that resumes from a saved state ends with the same bits as a fit that was never interrupted. */
import { describe, expect, test } from 'vitest';
import { THOROUGH } from '../../../fixtures/thorough.js';
import { createEngine } from '../../engine/create-engine.js';
import { createRandom } from '../../linalg/random.js';
import type { FitState, StateStore, Targets } from '../method.js';
import { solveAdam } from './adam.js';
import type { Problem, SolverOptions } from './problem.js';
import { solveVarpro } from './varpro.js';

const engine = await createEngine('onnx-cpu', { threads: 1 });
const problem: Problem = { experts: 7, rows: 12, cols: 40, bases: 3, rank: 12, activation: 'silu' };

const random = createRandom(5);
const normals = () => Float32Array.from({ length: problem.rows * problem.cols }, () => random.normal());
const shared = [normals(), normals()] as const;
/** Mixtures of two matrices plus little noise. They can be fitted so well that a step that is too large shows. */
const experts = Array.from({ length: problem.experts }, () => {
  const [a, b] = [random.normal(), random.normal()];
  return shared[0].map((value, i) => a * value + b * (shared[1][i] as number) + 0.01 * random.normal());
});
const targets: Targets = { read: (expert, target) => target.set(experts[expert] as Float32Array) };

const solvers = {
  varpro: (options: SolverOptions) => solveVarpro(engine, problem, targets, options),
  adam: (options: SolverOptions) => solveAdam(engine, problem, targets, options, 1),
};

const copyOf = (state: FitState): FitState =>
  Object.fromEntries(Object.entries(state).map(([name, values]) => [name, values.slice()]));

/** A store that saves at one step, for the next run to load. */
function storeAt(step: number): StateStore & { saved: FitState | undefined } {
  let asked = 0;
  const store = {
    saved: undefined as FitState | undefined,
    load: async () => store.saved && copyOf(store.saved),
    due: () => ++asked === step,
    save: async (state: FitState) => {
      store.saved = copyOf(state);
    },
  };
  return store;
}

describe.each(['varpro', 'adam'] as const)('%s', (solver) => {
  const options = (holdTargets: boolean): SolverOptions => ({
    steps: 230,
    learningRate: undefined,
    batchExperts: 3,
    holdTargets,
    seed: 1,
    label: 'test group',
  });

  for (const [step, holdTargets, cost] of [
    [1, true, {}],
    [2, false, THOROUGH],
    [57, true, THOROUGH],
    [205, false, {}],
    [230, true, THOROUGH],
  ] as const)
    test(
      `saved at step ${step}, killed after it, resumed: the same bits (targets held: ${holdTargets})`,
      cost,
      async () => {
        const whole = await solvers[solver](options(holdTargets));
        const states = storeAt(step);
        const losses: number[] = [];
        const interrupted = solvers[solver]({
          ...options(holdTargets),
          states,
          onStep: (it) => {
            losses.push(it.loss);
            if (it.step === step + 1 || it.step === it.steps) throw new Error('killed');
          },
        });
        await expect(interrupted).rejects.toThrow('killed');
        expect(states.saved).toBeDefined();
        const first: number[] = [];
        const resumed = await solvers[solver]({
          ...options(holdTargets),
          states,
          onStep: (it) => first.push(it.step),
        });
        expect(resumed).toEqual(whole);
        // It resumed, and did not start from the beginning.
        expect(first.length).toBeLessThanOrEqual(whole.steps - step + 1);
      },
    );

  test('saving changes nothing', async () => {
    const whole = await solvers[solver](options(true));
    const every: StateStore = { load: async () => undefined, due: () => true, save: async () => {} };
    expect(await solvers[solver]({ ...options(true), states: every })).toEqual(whole);
  });
});

test.each([1, 2, 20])('a step that is undone, before or after the save at step %i', async (step) => {
  const options: SolverOptions = {
    steps: 40,
    learningRate: 10, // far too high: the first step is undone twice
    batchExperts: 7,
    holdTargets: true,
    seed: 1,
    label: 'test group',
  };
  const whole = await solvers.varpro(options);
  const states = storeAt(step);
  const run = solvers.varpro({
    ...options,
    states,
    onStep: (it) => {
      if (it.step === step) throw new Error('killed');
    },
  });
  await expect(run).rejects.toThrow('killed');
  expect(states.saved?.progress?.[2]).toBe(step === 1 ? 0 : 2);
  expect(await solvers.varpro({ ...options, states })).toEqual(whole);
});
