/**
 * Compares the rate of a whole varpro step (its floating-point operations divided by its time) with an engine's rate of plain
 * matrix products. Prints a line for each shape and batch and writes bench/results/step.json.
 *
 *   npm run bench:step -- [--engine onnx-cpu] [--threads 2] [--batch 1,4]
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { usualBatch } from '../src/conversion/memory-plan.js';
import { createEngine, type EngineName } from '../src/engine/create-engine.js';
import { measureGemmRate } from '../src/engine/gemm-rate.js';
import { createRandom } from '../src/linalg/random.js';
import type { FitStep } from '../src/methods/method.js';
import { stepOperations } from '../src/methods/mobe/costs.js';
import { mobe } from '../src/methods/mobe/mobe.js';
import type { Problem } from '../src/methods/mobe/problem.js';
import { solveVarpro } from '../src/methods/mobe/varpro.js';
import { machine } from './machine.js';

const SHAPES: Problem[] = [
  { experts: 32, rows: 64, cols: 192, bases: 8, rank: 64, activation: 'silu' },
  { experts: 16, rows: 768, cols: 2048, bases: 4, rank: 768, activation: 'silu' },
];
/** The first steps restart inverses. Later steps only update them. */
const WARM_STEPS = 40;
const COUNTED_STEPS = 7;

/** Thrown to end a run after its measurement. */
class Measured extends Error {}

const { values: flags } = parseArgs({
  options: {
    engine: { type: 'string', default: 'onnx-cpu' },
    threads: { type: 'string', default: String(availableParallelism()) },
    batch: { type: 'string' },
  },
});
const threads = Number(flags.threads);
const engine = await createEngine(flags.engine as EngineName, { threads });

const rows = [];
for (const problem of SHAPES) {
  const { experts: n, rows: p, cols: d, bases: m, rank: r } = problem;
  for (const batchExperts of flags.batch?.split(',').map(Number) ?? [
    Math.min(n, usualBatch({ method: mobe, problem }, engine.kind)),
  ]) {
    const before = await measureGemmRate(engine, p, d, r);
    const seconds = await stepSeconds(problem, Math.min(n, batchExperts));
    const plain = Math.max(before, await measureGemmRate(engine, p, d, r));
    const rate = stepOperations(problem, 'varpro') / seconds;
    rows.push({ ...problem, batchExperts, secondsPerStep: seconds, rate, plainRate: plain, share: rate / plain });
    console.log(
      `n=${n} p=${p} d=${d} m=${m}, ${batchExperts} experts a batch: ${(seconds * 1000).toFixed(1)} ms a step, ${(rate / 1e9).toFixed(0)} GFLOP/s, ${((100 * rate) / plain).toFixed(0)} % of the plain product's ${(plain / 1e9).toFixed(0)}`,
    );
  }
}
const results = new URL('../../bench/results/', import.meta.url);
mkdirSync(results, { recursive: true });
const facts = { engine: engine.name, device: engine.device, threads };
writeFileSync(
  fileURLToPath(new URL('step.json', results)),
  `${JSON.stringify({ machine, ...facts, rows }, null, 2)}\n`,
);
process.exit(0); // does not wait for the runtime's idle threads

/** Median of the last steps of a short run, after the steps that restart inverses. */
async function stepSeconds(problem: Problem, batchExperts: number): Promise<number> {
  const { experts: n, rows: p, cols: d } = problem;
  const random = createRandom(1);
  const experts = Array.from({ length: n }, () => Float32Array.from({ length: p * d }, () => random.normal()));
  const targets = {
    read: (expert: number, target: Float32Array): void => target.set(experts[expert] as Float32Array),
  };
  const times: number[] = [];
  let last = performance.now();
  const onStep = ({ step }: FitStep): void => {
    const now = performance.now();
    if (step > WARM_STEPS) times.push(now - last);
    last = now;
    if (times.length === COUNTED_STEPS) throw new Measured();
  };
  const options = { steps: 400, learningRate: undefined, batchExperts, holdTargets: true, seed: 1, label: 'bench' };
  await solveVarpro(engine, problem, targets, { ...options, onStep }).catch((error) => {
    if (!(error instanceof Measured)) throw error;
  });
  return (times.sort((a, b) => a - b)[COUNTED_STEPS >> 1] as number) / 1000;
}
