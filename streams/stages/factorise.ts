/** The factorise stage: each group becomes a job, and the next free runner takes it. */
import { isDeepStrictEqual } from 'node:util';
import type { Encoding } from '../../src/checkpoint/encoding.js';
import {
  type GroupKey,
  type GroupPlan,
  groupKey,
  groupLabel,
  sourceBytes,
  weightEncoding,
} from '../../src/conversion/group-plan.js';
import type { MemoryPlan } from '../../src/conversion/memory-plan.js';
import type { RunSettings } from '../../src/conversion/settings.js';
import { PeerError, RemoteError, UnlikeFitsError } from '../../src/errors.js';
import { hasCodes } from '../../src/methods/factor-storage.js';
import { ridgeFor } from '../../src/methods/mobe/ridge-for.js';
import { PROJECTIONS } from '../../src/models/family.js';
import type { ExpertOutput, FitJob, FittedFactors, JobOutput } from '../compute/job.js';
import type { JobRunner, RunnerHooks, RunnerPool } from '../compute/job-runner.js';
import type { StateFile } from '../compute/state-file.js';
import type { StageClocks } from '../flow/stage-clock.js';
import type { FittedGroup, FoldedExpert, WeighedGroup } from '../records.js';
import type { FoldProgress, StepProgress } from '../run-options.js';

/** Options of `factorise`, the same for all groups of a run. */
export interface FactoriseOptions {
  readonly runners: RunnerPool;
  readonly settings: Pick<RunSettings, 'solver' | 'steps' | 'learningRate' | 'precision' | 'seed' | 'maxError'>;
  readonly memory: Pick<MemoryPlan, 'batchExperts' | 'holdTargets'>;
  /** Whether the job returns factors or rebuilt weights. */
  readonly written: FitJob['written'];
  /** The file in which a running fit saves its state. */
  readonly stateOf?: ((group: GroupPlan) => StateFile) | undefined;
  readonly onStep?: ((progress: StepProgress) => void) | undefined;
  readonly onFold?: ((progress: FoldProgress) => void) | undefined;
  /** Called when a runner is lost. Another runner then repeats its group. */
  readonly onLost?: ((runner: string, reason: Error) => void) | undefined;
  readonly clocks?: StageClocks | undefined;
}

/** Describes the job that fits a group. The description, together with the weights, decides the result. */
export function describeJob(
  { group, sigma, metric }: Pick<WeighedGroup, 'group' | 'sigma' | 'metric'>,
  { settings, memory, written }: Pick<FactoriseOptions, 'settings' | 'memory' | 'written'>,
): FitJob {
  const { solver, steps, learningRate, precision, seed, maxError } = settings;
  const encodings: Encoding[] = [];
  const numberOf = (encoding: Encoding): number => {
    const known = encodings.findIndex((it) => isDeepStrictEqual(it, encoding));
    return known < 0 ? encodings.push(encoding) - 1 : known;
  };
  const quantises = written === 'weights' && (group.forms ?? group.coded) !== undefined;
  const tensors = group.experts.map(({ name, data, encoding }, expert) => ({
    ...{ name, file: data.file, encoding: numberOf(encoding) },
    ...(quantises && { written: numberOf(weightEncoding(group, expert)) }),
  }));
  return {
    method: group.method.name,
    problem: group.problem,
    format: group.format,
    encodings,
    dtype: group.dtype,
    ...(written === 'factors' && hasCodes(group.stored) && { stored: group.stored }),
    written,
    ...(sigma !== undefined && { sigma }),
    ...(metric && { metric: { form: metric.form, fit: metric.fit } }),
    solver,
    options: {
      steps,
      ...(learningRate !== undefined && { learningRate }),
      ...(written === 'factors' && ridgeEntry(group)),
      ...(precision !== 'f32' && { precision }),
      batchExperts: memory.batchExperts,
      holdTargets: memory.holdTargets,
      seed: groupSeed(seed, group),
    },
    label: groupLabel(group),
    tensors,
    firstExpert: 0,
    ...(maxError !== undefined && written === 'weights' && { maxError }),
  };
}

/** The ridge of a fit whose factors will be quantised; none if they are floats. */
function ridgeEntry({ stored }: GroupPlan): { readonly ridge?: number } {
  const ridge = ridgeFor(stored.own);
  return ridge === undefined ? {} : { ridge };
}

/**
 * Fits a group. Its experts are computed one by one, when the caller asks for the next. When a runner is lost, another one fits
 * the group again and continues with the next expert. Throws `UnlikeFitsError` if the second fit's shared factors differ,
 * because the experts written so far belong to the first fit. Also throws what the job throws (`runJob`).
 */
export async function factorise(weighed: WeighedGroup, options: FactoriseOptions): Promise<FittedGroup> {
  const { group, experts, metric, release } = weighed;
  const { runners, clocks } = options;
  const job = describeJob(weighed, options);
  const data = { experts, ...(metric && { metric: metric.experts }) };
  const key = groupKey(group);
  const state = options.stateOf?.(group);
  const timed = <T>(bytes: number, work: () => Promise<T>): Promise<T> =>
    clocks ? clocks.work('fit', bytes, work) : work();

  /** Drops a lost runner. Rethrows any other error, since another runner would fail in the same way. */
  const lose = (runner: JobRunner, error: Error): void => {
    if (!(error instanceof PeerError) || error instanceof RemoteError) {
      runners.release(runner);
      throw error;
    }
    options.onLost?.(runner.name, error);
    runners.lose(runner, error);
  };
  const start = async (firstExpert: number): Promise<Running> => {
    for (;;) {
      const runner = await runners.acquire();
      try {
        const onStep: RunnerHooks['onStep'] = (step) => options.onStep?.({ ...key, ...step });
        const outputs = runner.run({ ...job, firstExpert }, data, { onStep, state })[Symbol.asyncIterator]();
        const { value } = await timed(sourceBytes(group), () => outputs.next());
        return { runner, outputs, fitted: value as FittedFactors };
      } catch (error) {
        lose(runner, error as Error);
      }
    }
  };

  const first = await start(0);
  let running: Running | undefined = first;
  const giveBack = async (): Promise<void> => {
    const it = running;
    running = undefined;
    if (!it) return;
    await it.outputs.return?.();
    runners.release(it.runner);
  };
  const nextExpert = async (expert: number): Promise<FoldedExpert> => {
    for (;;) {
      const { runner, outputs } = running as Running;
      try {
        return (await timed(0, () => outputs.next())).value as ExpertOutput;
      } catch (error) {
        running = undefined;
        lose(runner, error as Error);
        running = await start(expert);
        // The experts written so far belong to the first fit.
        if (!sameFactors(first.fitted, running.fitted))
          throw new UnlikeFitsError(groupLabel(group), running.runner.name);
      }
    }
  };
  async function* inOrder(): AsyncGenerator<FoldedExpert> {
    const count = group.experts.length;
    try {
      for (let expert = 0; expert < count; expert++) {
        options.onFold?.({ ...key, expert, experts: count });
        yield await nextExpert(expert);
      }
    } finally {
      await giveBack();
    }
  }
  const { kind: _, ...fitted } = first.fitted;
  return {
    group,
    ...fitted,
    metric: metric?.facts,
    experts: inOrder(),
    release() {
      void giveBack();
      release();
    },
  };
}

interface Running {
  readonly runner: JobRunner;
  readonly outputs: AsyncIterator<JobOutput>;
  readonly fitted: FittedFactors;
}

const sameFactors = ({ shared: a }: FittedFactors, { shared: b }: FittedFactors): boolean =>
  Object.entries(a).every(([name, bytes]) => Buffer.compare(bytes, b[name] ?? new Uint8Array(0)) === 0);

/** The seed of a group's random numbers. It does not depend on which other groups are converted. */
function groupSeed(seed: number, { layer, projection, group }: GroupKey): number {
  const own = layer * 8 + PROJECTIONS.indexOf(projection) + 1 + group * GROUP_STRIDE;
  return (seed * 1_000_003 + own) % Number.MAX_SAFE_INTEGER;
}

/** Larger than any number that layer and projection can give, so that no two groups share a seed. */
const GROUP_STRIDE = 2 ** 20;
