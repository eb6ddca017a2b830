/** Factorising: each group becomes a job, for whichever runner is free. */
import type { StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type GroupKey, type GroupPlan, groupKey, groupLabel, sourceBytes } from '../../src/conversion/group-plan.js';
import type { MemoryPlan } from '../../src/conversion/memory-plan.js';
import type { Settings } from '../../src/conversion/settings.js';
import { PeerError, RemoteError, UnlikeFitsError } from '../../src/errors.js';
import { PROJECTIONS } from '../../src/models/family.js';
import type { ExpertOutput, FitJob, FittedFactors, JobOutput } from '../compute/job.js';
import type { JobRunner, RunHooks, RunnerPool } from '../compute/job-runner.js';
import type { StateFile } from '../compute/state-file.js';
import type { StageClocks } from '../flow/stage-clock.js';
import type { FittedGroup, FoldedExpert, NormalisedGroup } from '../records.js';
import type { FoldProgress, StepProgress } from '../run-options.js';

export interface FactoriseOptions {
  readonly runners: RunnerPool;
  readonly settings: Pick<Settings, 'solver' | 'steps' | 'learningRate' | 'seed' | 'maxError'>;
  readonly memory: Pick<MemoryPlan, 'batchExperts' | 'holdTargets'>;
  readonly written: FitJob['written'];
  /** Where a running fit saves its state. */
  readonly stateOf?: ((group: GroupPlan) => StateFile) | undefined;
  readonly onStep?: ((progress: StepProgress) => void) | undefined;
  readonly onFold?: ((progress: FoldProgress) => void) | undefined;
  /** A runner is gone; what it had is done again by another. */
  readonly onLost?: ((runner: string, reason: Error) => void) | undefined;
  readonly clocks?: StageClocks | undefined;
}

/** The job that fits a group. Everything that decides its result is in it. */
export function describeJob(
  { group, sigma }: Pick<NormalisedGroup, 'group' | 'sigma'>,
  { settings, memory, written }: Pick<FactoriseOptions, 'settings' | 'memory' | 'written'>,
): FitJob {
  const { solver, steps, learningRate, seed, maxError } = settings;
  return {
    method: group.method.name,
    problem: group.problem,
    format: group.format,
    dtype: group.dtype,
    written,
    ...(sigma !== undefined && { sigma }),
    solver,
    options: {
      steps,
      ...(learningRate !== undefined && { learningRate }),
      batchExperts: memory.batchExperts,
      holdTargets: memory.holdTargets,
      seed: groupSeed(seed, group),
    },
    label: groupLabel(group),
    tensors: group.experts.map(({ name, data }: StoredMatrix) => ({ name, file: data.file })),
    firstExpert: 0,
    ...(maxError !== undefined && written === 'weights' && { maxError }),
  };
}

/**
 * Fits a group. Its experts come as they are asked for. A runner that is lost is replaced, and the job goes on with the next
 * expert, provided that what was written so far comes out the same.
 */
export async function factorise(normalised: NormalisedGroup, options: FactoriseOptions): Promise<FittedGroup> {
  const { group, experts, release } = normalised;
  const { runners, clocks } = options;
  const job = describeJob(normalised, options);
  const key = groupKey(group);
  const state = options.stateOf?.(group);
  const timed = <T>(bytes: number, work: () => Promise<T>): Promise<T> =>
    clocks ? clocks.work('fit', bytes, work) : work();

  /** Throws again what is no reason to go on with another runner. */
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
        const onStep: RunHooks['onStep'] = (step) => options.onStep?.({ ...key, ...step });
        const outputs = runner.run({ ...job, firstExpert }, experts, { onStep, state })[Symbol.asyncIterator]();
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
        // What was written so far belongs to the first fit.
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

/** Every group has random numbers of its own, whichever others are converted with it. */
function groupSeed(seed: number, { layer, projection, group }: GroupKey): number {
  const own = layer * 8 + PROJECTIONS.indexOf(projection) + 1 + group * GROUP_STRIDE;
  return (seed * 1_000_003 + own) % Number.MAX_SAFE_INTEGER;
}

/** More than any layer's number in the seed. */
const GROUP_STRIDE = 2 ** 20;
