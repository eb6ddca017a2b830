/** Measures how fast this run's groups are fitted: by a short fit of the run's own programs at its shapes, on random weights. */
import { expertBytes } from '../../src/calibration/group-metric.js';
import type { CompressionPlan } from '../../src/conversion/compression-plan.js';
import { FREE, jobOperations, type Pace } from '../../src/conversion/estimate.js';
import type { GroupPlan } from '../../src/conversion/group-plan.js';
import { jobMetric } from '../../src/conversion/metric-plan.js';
import { holdsWeights } from '../../src/conversion/settings.js';
import { createRandom } from '../../src/linalg/random.js';
import type { FitStep, GroupShape, MetricForm } from '../../src/methods/method.js';
import { matrixElements } from '../../src/methods/mobe/metric.js';
import type { OwnedData } from '../compute/job.js';
import { type JobRunner, localRunner } from '../compute/job-runner.js';
import { connectRunners, type RemoteWorkers } from '../compute/remote-runner.js';
import type { PeerOptions } from '../machines/peer-options.js';
import { describeJob } from '../stages/factorise.js';

/** The steps of the measured fit take about so long. */
const TRIAL_SECONDS = 1;
const STEPS = { least: 3, most: 60 } as const;
/** Larger matrices, in numbers, are fitted as smaller ones of this size: products of these have the rate of larger ones. */
const LARGE_MATRIX = 768 * 2048;
/** Sides of smaller matrices are multiples of this, so that blocks of codes and scales fit. */
const MULTIPLE = 128;
/** A worker that is silent for so long is not waited for: it is only an estimate. */
const REMOTE_PATIENCE_MS = 60_000;
/** The time of a run that is shorter than this is not worth a second measurement. */
const SHORT_RUN_SECONDS = 10;
/** So many operations take no second on any machine. Experts that take no more are fitted together, as in the run. */
const FEW_OPERATIONS = 4e9;
/** The pace of any machine, for runs of no more operations. */
const SLOW: Pace = { step: FEW_OPERATIONS, rest: FEW_OPERATIONS };
/** A thread tells of its steps now and then. Over a shorter time than this they say little. */
const LEAST_TOLD_SECONDS = 0.2;
/** One expert alone would be fitted exactly, and the fit would end early. */
const LEAST_EXPERTS = 2;

/**
 * The pace of one of the workers while all of them are busy. A group that would take too long is fitted with fewer experts, and with
 * as many fewer bases. Throws what a lost connection to a worker throws.
 */
export async function measurePace(
  planned: CompressionPlan,
  remote: RemoteWorkers | undefined,
  peers: PeerOptions = {},
): Promise<Pace> {
  const [largest, ...others] = planned.groups;
  if (!largest) return FREE;
  const sizeOf = (group: GroupPlan): number => jobOperations(group, planned.settings).whole;
  const group = others.reduce((most, other) => (sizeOf(other) > sizeOf(most) ? other : most), largest);
  const operations = planned.groups.reduce((sum, it) => sum + sizeOf(it), 0);
  if (operations < FEW_OPERATIONS) return SLOW;
  const { workers, threadsPerWorker: threads } = planned.memory;
  const stop = new AbortController();
  const runners = remote
    ? await connectRunners(remote, 1, threads, patient(peers), stop.signal)
    : Array.from({ length: workers }, () => localRunner({ engine: planned.settings.engine, threads }, stop.signal));
  try {
    /** The mean durations of a job on each of the runners, at the same time. */
    const time = async (experts: number, steps: number): Promise<Durations> => {
      const all = await Promise.all(runners.map((runner) => fitSome(runner, planned, group, experts, steps)));
      const mean = (part: keyof Durations): number => all.reduce((sum, it) => sum + it[part], 0) / all.length;
      return { step: mean('step'), whole: mean('whole') };
    };
    const most = group.problem.experts;
    const single = jobOperations(reduced(group, 1), { ...planned.settings, steps: 1 }).whole;
    let experts = Math.min(most, Math.max(LEAST_EXPERTS, Math.floor(FEW_OPERATIONS / single)));
    let sample = await time(experts, 1); // loads the engine and the programs, too
    if (sample.whole < TRIAL_SECONDS) {
      sample = await time(experts, 1);
      const fitting = Math.min(most, Math.max(experts, Math.floor((experts * TRIAL_SECONDS) / sample.whole)));
      if (fitting > experts) sample = await time(fitting, 1);
      experts = fitting;
    }
    const { step, rest } = jobOperations(reduced(group, experts), planned.settings);
    if (step === 0) return { step: Number.POSITIVE_INFINITY, rest: rest / sample.whole };
    const rough = (step + rest) / sample.whole;
    if (operations / rough < SHORT_RUN_SECONDS * workers) return { step: rough, rest: rough };
    const steps = Math.min(STEPS.most, Math.max(STEPS.least, Math.round((TRIAL_SECONDS * rough) / step)));
    const measured = await time(experts, steps);
    // Steps that are too short to be told of are as fast as the rest.
    const each = measured.step || (measured.whole * step) / (steps * step + rest);
    return { step: step / each, rest: rest / Math.max(1e-6, measured.whole - steps * each) };
  } finally {
    stop.abort();
    await Promise.all(runners.map((runner) => runner.close()));
  }
}

const patient = ({ stallTimeoutMs = REMOTE_PATIENCE_MS, ...peers }: PeerOptions): PeerOptions => ({
  ...peers,
  stallTimeoutMs: Math.min(stallTimeoutMs, REMOTE_PATIENCE_MS),
});

/** A group with fewer experts, whose matrices are smaller if they are very large. */
function reduced(group: GroupPlan, experts: number): GroupPlan {
  const { method, problem, format } = group;
  const side = Math.sqrt(Math.min(1, LARGE_MATRIX / (problem.rows * problem.cols)));
  const shrunk = (size: number): number => (side === 1 ? size : MULTIPLE * Math.ceil((side * size) / MULTIPLE));
  const [rows, cols] = [shrunk(problem.rows), shrunk(problem.cols)];
  // Every method with factors has a rank.
  const rank = 'rank' in problem && { rank: shrunk(problem.rank as number) };
  const fewer: GroupShape = { ...problem, ...rank, experts, rows, cols };
  const bases = method.bases?.of(problem) ?? 0;
  const share = Math.max(1, Math.min(experts - 1, Math.round((bases * experts) / problem.experts)));
  const matrices = group.experts.slice(0, experts);
  return {
    ...group,
    problem: experts === problem.experts ? fewer : (method.bases?.change(fewer, share) ?? fewer),
    format: { ...format, ...(format.transposed ? { rows: cols, cols: rows } : { rows, cols }) },
    experts: matrices.map((it) => ({ ...it, encoding: { kind: 'float', dtype: 'F32' } as const })),
  };
}

/** The duration of a job, and that of one of its steps; 0 if these are unknown. In seconds. */
interface Durations {
  readonly step: number;
  readonly whole: number;
}

/** Fits some of a group's experts, with random weights. */
async function fitSome(
  runner: JobRunner,
  { settings, memory, format }: CompressionPlan,
  group: GroupPlan,
  experts: number,
  steps: number,
): Promise<Durations> {
  const trial = reduced(group, experts);
  const { problem } = trial;
  const metric = jobMetric(settings.weighing?.metric, trial);
  const weighed = metric && { ...metric, experts: [], facts: undefined as never };
  const written = holdsWeights({ format }) ? 'weights' : 'factors';
  const { maxError: _, ...plain } = settings;
  const job = describeJob(
    { group: trial, sigma: undefined, metric: weighed },
    { settings: { ...plain, steps }, memory, written },
  );
  const data: OwnedData = {
    experts: randomWeights(problem),
    ...(metric && { metric: Array.from({ length: experts }, () => identity(problem, metric.form)) }),
  };
  const began = performance.now();
  const seconds = (): number => (performance.now() - began) / 1000;
  const told: Array<{ readonly step: number; readonly at: number }> = [];
  const onStep = ({ step }: FitStep): void => {
    told.push({ step, at: seconds() });
  };
  for await (const _ of runner.run(job, data, { onStep })) {
    // The result is not needed.
  }
  const [first, last] = [told[0], told.at(-1)];
  const long = first && last && last.at - first.at > LEAST_TOLD_SECONDS;
  const step = long ? (last.at - first.at) / (last.step - first.step) : 0;
  return { step, whole: seconds() };
}

function randomWeights({ experts, rows, cols }: GroupShape): Uint8Array<ArrayBuffer>[] {
  const random = createRandom(1);
  const some = Float32Array.from({ length: 8191 }, () => random.normal());
  return Array.from({ length: experts }, (_, expert) => {
    const values = new Float32Array(rows * cols);
    for (let i = 0; i < values.length; i++) values[i] = some[(i * (expert + 2)) % some.length] as number;
    return new Uint8Array(values.buffer);
  });
}

/** The metric of an expert, as a job has it, in which all errors count alike. */
function identity({ rows, cols }: GroupShape, form: MetricForm): Uint8Array<ArrayBuffer> {
  const values = new Float32Array(expertBytes({ rows, cols }, form) / 4);
  let at = 0;
  for (const [matrix, size] of [
    [form.rows, rows],
    [form.columns, cols],
  ] as const) {
    if (!matrix) continue;
    const own = values.subarray(at, at + matrixElements(matrix, size));
    at += own.length;
    if (matrix.form === 'full') for (let i = 0; i < size; i++) own[i * (size + 1)] = 1;
    else if (matrix.form === 'diagonal') own.fill(1);
    else own[own.length - 1] = 1; // c of c·I + ZZᵀ
  }
  return new Uint8Array(values.buffer);
}
