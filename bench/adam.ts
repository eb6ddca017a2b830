/**
 * Compares a step of `--solver adam` with the same step in PyTorch (bench/reference/train.py). They run in turn on the same
 * cores. Prints a table and writes bench/results/adam.json.
 *
 *   PYTHON=python3 npm run bench:adam -- [--large]        the interpreter needs torch; --large takes some minutes
 */
import { execFileSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { createEngine } from '../src/engine/create-engine.js';
import { addMoments, deviation, measureMoments, NO_MOMENTS } from '../src/linalg/moments.js';
import { createRandom } from '../src/linalg/random.js';
import { solveAdam } from '../src/methods/mobe/adam.js';
import { type Activation, type Problem, REFERENCE_ACTIVATIONS } from '../src/methods/mobe/problem.js';
import { machine } from './machine.js';
import { encodeNpy } from './npy.js';

const root = fileURLToPath(new URL('../..', import.meta.url));
const python = process.env.PYTHON ?? 'python3';
/** The best median of these rounds counts, because other work on the machine can only make a round slower. */
const ROUNDS = 3;

const SMALL = { experts: 32, rows: 64, cols: 192, bases: 8, rank: 64, steps: 200 };
const LARGE = { experts: 16, rows: 768, cols: 2048, bases: 4, rank: 768, steps: 5 };

const folder = mkdtempSync(join(process.env.MOBE_BENCH_DIR ?? tmpdir(), 'mobe-adam-'));
const rows = [];
try {
  for (const shape of process.argv.includes('--large') ? [SMALL, LARGE] : [SMALL]) {
    const experts = syntheticExperts(shape);
    const file = join(folder, 'experts.npy');
    writeFileSync(file, encodeNpy(experts, [shape.experts, shape.rows, shape.cols]));
    for (const threads of [1, 2]) {
      for (const activation of REFERENCE_ACTIVATIONS) {
        const times = { ours: Number.POSITIVE_INFINITY, torch: Number.POSITIVE_INFINITY };
        for (let round = 0; round < (shape === LARGE ? 1 : ROUNDS); round++) {
          times.torch = Math.min(times.torch, torchStep(file, shape, activation, threads));
          times.ours = Math.min(times.ours, await ourStep(experts, shape, activation, threads));
        }
        rows.push({ ...shape, activation, threads, milliseconds: times, ratio: times.torch / times.ours });
        const { experts: n, rows: p, cols: d, bases: m } = shape;
        console.log(
          `n=${n} p=${p} d=${d} m=${m}, ${activation}, ${threads} threads: ${times.ours.toFixed(2)} ms a step, PyTorch ${times.torch.toFixed(2)} ms, ratio ${(times.torch / times.ours).toFixed(2)}`,
        );
      }
    }
  }
} finally {
  rmSync(folder, { recursive: true, force: true });
}
mkdirSync(join(root, 'bench/results'), { recursive: true });
writeFileSync(join(root, 'bench/results/adam.json'), `${JSON.stringify({ machine, rows }, null, 2)}\n`);

type Shape = typeof SMALL;

/** Median of the steps after the first, milliseconds. */
function torchStep(file: string, shape: Shape, activation: Activation, threads: number): number {
  const flags = { bases: shape.bases, activation, threads, steps: shape.steps };
  const output = execFileSync(
    python,
    [join(root, 'bench/reference/train.py'), file, ...Object.entries(flags).flatMap(([k, v]) => [`--${k}`, String(v)])],
    { maxBuffer: 2 ** 28, env: { ...process.env, OMP_NUM_THREADS: String(threads) } },
  );
  const { curve } = JSON.parse(output.toString()).groups[0] as { curve: [number, number, number][] };
  return medianStep(curve.map(([, seconds]) => seconds * 1000));
}

async function ourStep(
  experts: Float32Array[],
  shape: Shape,
  activation: Activation,
  threads: number,
): Promise<number> {
  const engine = await createEngine('onnx-cpu', { threads });
  const problem: Problem = { ...shape, activation };
  const sigma = deviation(experts.map(measureMoments).reduce(addMoments, NO_MOMENTS));
  const read = (expert: number, target: Float32Array): void => {
    for (const [i, value] of (experts[expert] as Float32Array).entries()) target[i] = value / sigma;
  };
  const ends: number[] = [];
  const onStep = (): void => {
    ends.push(performance.now());
  };
  const options = { steps: shape.steps, learningRate: undefined, batchExperts: shape.experts, holdTargets: true };
  await solveAdam(engine, problem, { read }, { ...options, seed: 1, label: 'bench', onStep }, sigma);
  return medianStep(ends);
}

function medianStep(ends: readonly number[]): number {
  const steps = ends.slice(1).map((end, i) => end - (ends[i] as number));
  return steps.sort((a, b) => a - b)[steps.length >> 1] as number;
}

function syntheticExperts({ experts, rows, cols }: Shape): Float32Array[] {
  const random = createRandom(1);
  return Array.from({ length: experts }, () =>
    Float32Array.from({ length: rows * cols }, () => 0.02 * random.normal()),
  );
}
