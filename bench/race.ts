/** Runs one race: first the reference's method in PyTorch, then varpro with more and more planned steps. They never run at once. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { REFERENCE_CURVES } from '../fixtures/paths.js';
import type { EngineName } from '../src/engine/create-engine.js';
import type { Activation } from '../src/methods/mobe/problem.js';
import { bestSoFar, goalOf, type Level, type Point, type Reached, reach, thin } from './levels.js';
import type { FitOutcome, FitRequest } from './solve.js';
import type { Subject } from './subjects.js';

const SOLVE = fileURLToPath(new URL('solve.js', import.meta.url));
const TRAIN = join(fileURLToPath(new URL('../..', import.meta.url)), 'bench/reference/train.py');

/** Steps of the reference whose losses are levels of the race, besides its result. */
const LEVELS = [100, 300, 400, 1000, 4000];
const CURVE_POINTS = 100;
/** A run with a time limit aims at this share of the limit. */
const AIM = 0.96;

/** Settings of a race. */
export interface RaceOptions {
  /** A Python with PyTorch; undefined if there is none. */
  readonly python: string | undefined;
  readonly referenceSteps: number;
  /** Planned steps, fewest first. */
  readonly ladder: readonly number[];
  /** Our last run takes this share of the reference's time. */
  readonly share: number;
  readonly threads: number;
  readonly seed: number;
  /** The engine of varpro. */
  readonly engine: EngineName;
  /** PyTorch's device: "cpu" or "cuda". */
  readonly device: string;
  readonly log: (line: string) => void;
}

/** One of our runs. */
export interface Run extends FitOutcome {
  readonly planned: number;
}

/** The reference's run. */
export interface Reference {
  readonly torch: string;
  /** The GPU's name, or "cpu". */
  readonly device: string;
  readonly steps: number;
  readonly seconds: number;
  /** The part of `seconds` before the first step. */
  readonly startSeconds: number;
  readonly stepSeconds: number;
  readonly peakRssBytes: number;
  /** Loss of the state that it keeps. It looks for a better one at every 200th step. */
  readonly loss: number;
  /** The best loss so far at each point. */
  readonly curve: readonly Point[];
}

/** The result of a race. */
export interface Race {
  readonly subject: string;
  readonly kind: Subject['kind'];
  readonly problem: Subject['problem'];
  readonly activation: Activation;
  readonly reference?: Reference;
  readonly ours: readonly Run[];
  /** The reference's losses in the order of its steps. Its result is the lower of its kept and its last loss. */
  readonly levels: readonly Reached[];
  /** The run that takes `share` of the reference's time. `difference` is its loss divided by the reference's, minus 1. */
  readonly long?: Run & { readonly share: number; readonly difference: number };
}

/** A group's weights as a file, and the numbers that convert errors into units of σ². */
export interface Weights {
  readonly file: string;
  readonly sigma: number;
  /** ΣW²/(Nσ²). A loss is a relative squared error times this. */
  readonly meanSquare: number;
}

/** Runs a race on one group and activation. */
export function race(subject: Subject, activation: Activation, weights: Weights, options: RaceOptions): Race {
  const { bases } = subject.problem;
  const { log, python } = options;
  const { reference, levels } = python
    ? train(python, bases, activation, weights, options)
    : committed(subject, activation, weights);
  const goal = goalOf(levels)?.loss ?? 0;
  if (reference) log(`reference: ${goal.toFixed(4)} in ${reference.seconds.toFixed(1)} s, ${reference.steps} steps`);
  const limit = reference ? AIM * options.share * reference.seconds : Number.POSITIVE_INFINITY;
  const { seed, threads, engine } = options;
  const ours: Run[] = [];
  const run = (planned: number): Run => {
    const outcome = solve(weights.file, { bases, activation, steps: planned, seed, threads, engine });
    log(`varpro: ${outcome.loss.toFixed(4)} in ${outcome.seconds.toFixed(1)} s, ${planned} steps planned`);
    ours.push({ planned, ...outcome });
    return { planned, ...outcome };
  };
  for (const planned of options.ladder) {
    const last = ours.at(-1);
    if (last && (last.loss <= goal || planned > stepsWithin(limit, last))) break;
    run(planned);
  }
  const fastest = ours.at(-1) as Run;
  const long = reference && run(Math.max(2, stepsWithin(limit, fastest)));
  const byPlan = [...ours].sort((a, b) => a.planned - b.planned);
  return {
    subject: subject.name,
    kind: subject.kind,
    problem: subject.problem,
    activation,
    ...(reference && { reference: { ...reference, curve: thin(reference.curve, CURVE_POINTS) } }),
    ours: byPlan,
    levels: levels.map((level) => reach(level, byPlan)),
    ...(reference &&
      long && { long: { ...long, share: long.seconds / reference.seconds, difference: long.loss / goal - 1 } }),
  };
}

/** Number of steps that take `seconds`, estimated from another run. */
const stepsWithin = (seconds: number, { seconds: taken, steps, stepSeconds }: Run): number =>
  Math.floor((seconds - (taken - steps * stepSeconds)) / stepSeconds);

interface Trained {
  readonly reference?: Reference;
  readonly levels: readonly Level[];
}

interface TrainOutput {
  torch: string;
  device: string;
  sigma: number;
  peak_rss_bytes: number;
  groups: [
    {
      steps: number;
      start_seconds: number;
      seconds: number;
      curve: [step: number, seconds: number, loss: number][];
      relative_squared_error: number;
    },
  ];
}

function train(
  python: string,
  bases: number,
  activation: Activation,
  { file, sigma, meanSquare }: Weights,
  { referenceSteps, threads, device }: RaceOptions,
): Trained {
  const flags = { bases, activation, steps: referenceSteps, threads, device };
  const args = Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const output = child<TrainOutput>(python, [TRAIN, file, ...args], threads);
  const [{ steps, seconds, start_seconds: startSeconds, curve: raw, relative_squared_error }] = output.groups;
  // The reference's losses are in units of its own σ², which is rounded to fp16.
  const unit = (output.sigma / sigma) ** 2;
  const curve = bestSoFar(raw.map(([, at, loss]) => [at, loss * unit]));
  const loss = relative_squared_error * meanSquare;
  const last = (raw.at(-1) as TrainOutput['groups'][0]['curve'][0])[2] * unit;
  const reference: Reference = {
    torch: output.torch,
    device: output.device,
    steps,
    seconds,
    startSeconds,
    stepSeconds: (seconds - startSeconds) / steps,
    peakRssBytes: output.peak_rss_bytes,
    loss,
    curve,
  };
  const passed = LEVELS.filter((at) => at < steps).map((at): Level => {
    const [atSeconds, atLoss] = curve[at - 1] as Point;
    return { at, loss: atLoss, seconds: atSeconds };
  });
  const ends: Level[] = [
    { at: steps, loss: Math.min(loss, last), seconds },
    { at: 'last', loss: last, seconds },
  ];
  return { reference, levels: [...passed, ...ends] };
}

/** The reference's losses from the fixtures, without times. */
function committed({ name }: Subject, activation: Activation, { meanSquare }: Weights): Trained {
  const { curves, final } = JSON.parse(readFileSync(REFERENCE_CURVES, 'utf8'));
  const group = name.replace('layer ', 'layer').replace(' ', '.');
  const curve: Point[] = curves[`${group}.${activation}`]?.curve ?? [];
  const levels: Level[] = curve.filter(([at]) => LEVELS.includes(at)).map(([at, loss]) => ({ at, loss }));
  const error: number | undefined = activation === 'silu' ? final[group] : undefined;
  return { levels: error === undefined ? levels : [...levels, { at: 10_000, loss: error * meanSquare }] };
}

const solve = (file: string, request: FitRequest): FitOutcome =>
  child(process.execPath, [SOLVE, file, JSON.stringify(request)], request.threads);

function child<Output>(command: string, args: readonly string[], threads: number): Output {
  const env = { ...process.env, OMP_NUM_THREADS: String(threads) };
  return JSON.parse(execFileSync(command, args, { env, maxBuffer: 2 ** 28, encoding: 'utf8' }));
}
