/** One race: the reference's method in PyTorch, then varpro with ever more planned steps; never both at once. */
import { execFileSync } from 'node:child_process';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { REFERENCE_CURVES } from '../fixtures/paths.js';
import type { Activation } from '../src/methods/mobe/problem.js';
import { bestSoFar, goalOf, type Level, type Point, type Reached, reach, thin } from './levels.js';
import type { FitOutcome, FitRequest } from './solve.js';
import type { Subject } from './subjects.js';

const SOLVE = fileURLToPath(new URL('solve.js', import.meta.url));
const TRAIN = join(fileURLToPath(new URL('../..', import.meta.url)), 'bench/reference/train.py');

/** Steps of the reference whose losses are raced for, besides its result. */
const LEVELS = [100, 400, 1000, 4000];
const CURVE_POINTS = 100;
/** A run that is to take a given time aims a little below it. */
const AIM = 0.96;

export interface RaceOptions {
  /** Undefined: no PyTorch. */
  readonly python: string | undefined;
  readonly referenceSteps: number;
  /** Planned steps, fewest first. */
  readonly ladder: readonly number[];
  /** The last run of ours takes this share of the reference's time. */
  readonly share: number;
  readonly threads: number;
  readonly seed: number;
  readonly log: (line: string) => void;
}

export interface Run extends FitOutcome {
  readonly planned: number;
}

export interface Reference {
  readonly torch: string;
  readonly steps: number;
  readonly seconds: number;
  /** Of `seconds`, before the first step. */
  readonly startSeconds: number;
  readonly stepSeconds: number;
  readonly peakRssBytes: number;
  /** Of the state it keeps, the best at every 200th step. */
  readonly loss: number;
  /** Best so far. */
  readonly curve: readonly Point[];
}

export interface Race {
  readonly subject: string;
  readonly kind: Subject['kind'];
  readonly problem: Subject['problem'];
  readonly activation: Activation;
  readonly reference?: Reference;
  readonly ours: readonly Run[];
  /** The reference's losses in the order of its steps; that of its result is the lower of what it kept and its last. */
  readonly levels: readonly Reached[];
  /** The run at `share` of the reference's time, and its loss over the reference's, less one. */
  readonly long?: Run & { readonly share: number; readonly difference: number };
}

/** A group's weights as a file, and what turns errors into units of σ². */
export interface Weights {
  readonly file: string;
  readonly sigma: number;
  /** ΣW²/(Nσ²): a loss is this times a relative squared error. */
  readonly meanSquare: number;
}

export function race(subject: Subject, activation: Activation, weights: Weights, options: RaceOptions): Race {
  const { bases } = subject.problem;
  const { log, python } = options;
  const { reference, levels } = python
    ? train(python, bases, activation, weights, options)
    : committed(subject, activation, weights);
  const goal = goalOf(levels)?.loss ?? 0;
  if (reference) log(`reference: ${goal.toFixed(4)} in ${reference.seconds.toFixed(1)} s, ${reference.steps} steps`);
  const limit = reference ? AIM * options.share * reference.seconds : Number.POSITIVE_INFINITY;
  const { seed, threads } = options;
  const ours: Run[] = [];
  const run = (planned: number): Run => {
    const outcome = solve(weights.file, { bases, activation, steps: planned, seed, threads });
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

/** What a run would have to plan to take `seconds`, by another's start and steps. */
const stepsWithin = (seconds: number, { seconds: taken, steps, stepSeconds }: Run): number =>
  Math.floor((seconds - (taken - steps * stepSeconds)) / stepSeconds);

interface Trained {
  readonly reference?: Reference;
  readonly levels: readonly Level[];
}

interface TrainOutput {
  torch: string;
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
  { referenceSteps, threads }: RaceOptions,
): Trained {
  const flags = { bases, activation, steps: referenceSteps, threads };
  const args = Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]);
  const output = child<TrainOutput>(python, [TRAIN, file, ...args], threads);
  const [{ steps, seconds, start_seconds: startSeconds, curve: raw, relative_squared_error }] = output.groups;
  // Its losses are in units of its own σ², which is rounded to fp16.
  const unit = (output.sigma / sigma) ** 2;
  const curve = bestSoFar(raw.map(([, at, loss]) => [at, loss * unit]));
  const loss = relative_squared_error * meanSquare;
  const last = (raw.at(-1) as TrainOutput['groups'][0]['curve'][0])[2] * unit;
  const reference: Reference = {
    torch: output.torch,
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

/** What the fixtures tell of the reference: losses without times. */
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
