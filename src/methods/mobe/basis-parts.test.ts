/** Bases in parts, and experts in turn: what only large groups need, on small ones. */
import { describe, expect, test } from 'vitest';
import { createEngine } from '../../engine/create-engine.js';
import type { Engine } from '../../engine/engine.js';
import { createRandom } from '../../linalg/random.js';
import type { FitState, StateStore, Targets } from '../method.js';
import { basisParts } from './basis-parts.js';
import type { Problem, SolverOptions } from './problem.js';
import { solveVarpro } from './varpro.js';

const engine = await createEngine('onnx-cpu', { threads: 1 });
const problem: Problem = { experts: 7, rows: 12, cols: 40, bases: 5, rank: 12, activation: 'silu' };
const BASIS = 4 * 12 * 40;
/** Parts of one and of two bases. */
const PARTS = { part: 2 * BASIS, expert: Number.POSITIVE_INFINITY };
const TURNS = { part: 5 * BASIS, expert: 0 };

const random = createRandom(5);
const shared = [0, 0, 0].map(() => Float32Array.from({ length: 12 * 40 }, () => random.normal()));
const experts = Array.from({ length: problem.experts }, () => {
  const weights = shared.map(() => random.normal());
  const noise = 0.1;
  return (shared[0] as Float32Array).map(
    (_, i) =>
      shared.reduce((sum, it, k) => sum + (weights[k] as number) * (it[i] as number), 0) + noise * random.normal(),
  );
});
const targets: Targets = { read: (expert, target) => target.set(experts[expert] as Float32Array) };

const OPTIONS: SolverOptions = {
  ...{ steps: 30, learningRate: undefined, batchExperts: 3, holdTargets: false, seed: 1, label: 'test group' },
};
const solve = (options: Partial<SolverOptions>, on: Engine = engine) =>
  solveVarpro(on, problem, targets, { ...OPTIONS, ...options });

/** Sizes of tensors that programs make, and how many of them are written to memory that was given. */
function watched(): { engine: Engine; largest: () => number; written: () => number } {
  let largest = 0;
  let written = 0;
  const watching: Engine = {
    ...engine,
    compile: async (graph) => {
      const program = await engine.compile(graph);
      return {
        run: async (inputs, into) => {
          const results = await program.run(inputs, into);
          for (const [name, { shape }] of Object.entries(results)) {
            if (into?.[name]) written++;
            else
              largest = Math.max(
                largest,
                shape.reduce((a, b) => a * b, 4),
              );
          }
          return results;
        },
        dispose: () => program.dispose(),
      };
    },
  };
  return { engine: watching, largest: () => largest, written: () => written };
}

test('parts are whole bases, as many as fit, and engines that cannot write them have one', () => {
  const counts = (bytes: number) => basisParts(problem, engine, bytes).map(({ count }) => count);
  expect(counts(2 * BASIS)).toEqual([1, 2, 2]);
  expect(counts(BASIS - 1)).toEqual([1, 1, 1, 1, 1]);
  expect(counts(5 * BASIS)).toEqual([5]);
  expect(basisParts(problem, {}, BASIS)).toEqual([{ first: 0, count: 5 }]);
  // DeepSeek-V3's bases have 56 MiB each, those of Qwen3-30B 6.
  expect(basisParts({ bases: 64, rank: 2048, cols: 7168 }, engine)).toHaveLength(64);
  expect(basisParts({ bases: 32, rank: 768, cols: 2048 }, engine)).toHaveLength(16);
});

describe('a fit', () => {
  test.each([
    ['steps', {}],
    ['steps that are undone', { learningRate: 10 }],
  ])('with bases in parts finds what it finds with all at once: %s', async (_, options) => {
    const losses = async (limits: SolverOptions['limits']) => {
      const seen: number[] = [];
      const { loss } = await solve({ ...options, steps: 6, limits, onStep: (it) => seen.push(it.loss) });
      return [...seen, loss];
    };
    const whole = await losses(undefined);
    for (const limits of [PARTS, { ...PARTS, part: BASIS }])
      for (const [i, loss] of (await losses(limits)).entries())
        expect(Math.abs(loss / (whole[i] as number) - 1)).toBeLessThan(1e-4);
  });

  test('makes no tensor as large as all bases, if they have parts', async () => {
    const { engine: watching, largest, written } = watched();
    const parts = { ...PARTS, part: BASIS };
    await solve({ steps: 3, limits: parts }, watching);
    expect(largest()).toBe(3 * BASIS); // D of three experts
    expect(written()).toBeGreaterThan(0);
    const plain = watched();
    await solve({ steps: 3 }, plain.engine);
    expect(plain.largest()).toBe(5 * BASIS);
  });

  test('of large experts in turn finds the same', async () => {
    const at = (options: Partial<SolverOptions>) => solve({ batchExperts: 1, steps: 5, ...options });
    const plain = await at({});
    for (const limits of [TURNS, { ...TURNS, part: BASIS }]) {
      const { bases, loss } = await at({ limits });
      expect(bases).not.toEqual(plain.bases); // the order of sums differs
      expect(Math.abs(loss / plain.loss - 1)).toBeLessThan(1e-5);
    }
    const { engine: watching, largest } = watched();
    await solve({ batchExperts: 1, steps: 5, limits: { ...TURNS, part: BASIS } }, watching);
    expect(largest()).toBe(BASIS);
  });

  test.each([
    ['parts', 3, PARTS],
    ['parts and turns', 1, { ...TURNS, part: BASIS }],
  ])('goes on from a saved state to the same bits: %s', async (_, batchExperts, limits) => {
    const options = { batchExperts, limits };
    const whole = await solve(options);
    const states = storeAt(12);
    const onStep = ({ step }: { step: number }): void => {
      if (step === 15) throw new Error('killed');
    };
    await expect(solve({ ...options, states, onStep })).rejects.toThrow('killed');
    const seen: number[] = [];
    expect(await solve({ ...options, states, onStep: ({ step }) => seen.push(step) })).toEqual(whole);
    expect(seen[0]).toBe(12);
  });

  test.each<[string, (state: Record<string, Float32Array>) => void]>([
    ['has inverses of another length', (state) => (state['inverse 0'] = new Float32Array(7))],
    ['lacks an array', (state) => delete state.momentum],
  ])('begins anew if the saved state of another build %s', async (_, alter) => {
    const whole = await solve({});
    const states = storeAt(12);
    await solve({ states });
    alter(states.saved as Record<string, Float32Array>);
    const seen: number[] = [];
    expect(await solve({ states, onStep: ({ step }) => seen.push(step) })).toEqual(whole);
    expect(seen[0]).toBe(1);
  });
});

/** A store that saves at one step, for the next run to load. */
function storeAt(step: number): StateStore & { saved: FitState | undefined } {
  let asked = 0;
  const store = {
    saved: undefined as FitState | undefined,
    load: async () => store.saved && structuredClone(store.saved),
    due: () => ++asked === step,
    save: async (state: FitState) => {
      store.saved = structuredClone(state);
    },
  };
  return store;
}
