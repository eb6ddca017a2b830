/**
 * Runs one fit by varpro in a process of its own, so that its peak memory can be measured:
 *
 *   node solve.js experts.npy '{"bases": 8, "activation": "silu", "steps": 400, "seed": 1, "threads": 1, "engine": "onnx-cpu"}'
 *
 * Like that of bench/reference/train.py, the clock starts after modules are loaded and weights are read. It stops at the last A. The
 * error of the result is measured afterwards.
 */
import { readFileSync } from 'node:fs';
import 'onnxruntime-node';
import { usualBatch } from '../src/conversion/memory-plan.js';
import { peakRssBytes } from '../src/conversion/run-report.js';
import { createEngine, type EngineName } from '../src/engine/create-engine.js';
import type { Precision } from '../src/engine/engine.js';
import { allowTensorCores, choosePrecision } from '../src/engine/tensor-cores.js';
import { addMoments, deviation, measureMoments, NO_MOMENTS } from '../src/linalg/moments.js';
import type { Targets } from '../src/methods/method.js';
import { mobe } from '../src/methods/mobe/mobe.js';
import type { Activation, Problem } from '../src/methods/mobe/problem.js';
import { createReconstruction } from '../src/methods/mobe/reconstruct.js';
import { createRefit } from '../src/methods/mobe/refit.js';
import { solveVarpro } from '../src/methods/mobe/varpro.js';
import { mean, median } from './levels.js';
import { decodeNpy } from './npy.js';

/** Arguments of a fit. */
export interface FitRequest {
  readonly bases: number;
  readonly activation: Activation;
  readonly steps: number;
  readonly seed: number;
  readonly threads: number;
  readonly engine: EngineName;
}

/** Result of a fit. */
export interface FitOutcome {
  /** Steps that were done. The request has the planned number. */
  readonly steps: number;
  readonly seconds: number;
  /** Mean time of a step. Early steps often recompute inverses, so the median describes late steps. */
  readonly stepSeconds: number;
  readonly medianStepSeconds: number;
  /** Mean squared error of A·f(αB), in units of σ². */
  readonly loss: number;
  readonly peakRssBytes: number;
  /** The name of the device on which the engine ran. */
  readonly device: string;
  /** The precision of the steps: the engine's default. */
  readonly precision: Precision;
}

const [file, request] = process.argv.slice(2) as [string, string];
const { bases, activation, threads, engine: engineName, ...options } = JSON.parse(request) as FitRequest;
const { parts, shape } = decodeNpy(readFileSync(file));
const [experts, rows, cols] = shape as [number, number, number];

const begun = performance.now();
const clock = (): number => (performance.now() - begun) / 1000;
const sigma = deviation(parts.map(measureMoments).reduce(addMoments, NO_MOMENTS));
const problem: Problem = { experts, rows, cols, bases, rank: Math.min(rows, cols), activation };
const targets: Targets = {
  read(expert, target) {
    const weights = parts[expert] as Float32Array;
    for (let i = 0; i < target.length; i++) target[i] = (weights[i] as number) / sigma;
  },
};
allowTensorCores();
const engine = await createEngine(engineName, { threads });
const precision = choosePrecision(engine, undefined);
const ends: number[] = [];
const solution = await solveVarpro(engine, problem, targets, {
  ...options,
  learningRate: undefined,
  batchExperts: Math.min(experts, usualBatch({ method: mobe, problem }, engine.kind)),
  holdTargets: true,
  precision,
  label: file,
  onStep: () => ends.push(clock()),
});
const refit = await createRefit(engine, problem, solution);
const W = new Float32Array(rows * cols);
const A: Float32Array[] = [];
for (let expert = 0; expert < experts; expert++) {
  targets.read(expert, W);
  A.push(await refit.fit(expert, W));
}
const seconds = clock();

const peak = peakRssBytes();
const reconstruction = await createReconstruction(engine, problem, solution);
let squared = 0;
for (const [expert, factor] of A.entries()) {
  targets.read(expert, W);
  const rebuilt = await reconstruction.expert(expert, factor);
  for (let i = 0; i < W.length; i++) squared += ((W[i] as number) - (rebuilt[i] as number)) ** 2;
}
const stepTimes = ends.slice(1).map((end, i) => end - (ends[i] as number));
const outcome: FitOutcome = {
  steps: solution.steps,
  seconds,
  stepSeconds: mean(stepTimes),
  medianStepSeconds: median(stepTimes),
  loss: squared / (experts * W.length),
  peakRssBytes: peak,
  device: engine.device,
  precision,
};
console.log(JSON.stringify(outcome));
