import { type GroupKey, type GroupPlan, groupLabel, sourceBytes } from '../../src/conversion/group-plan.js';
import type { MemoryPlan } from '../../src/conversion/memory-plan.js';
import type { Settings } from '../../src/conversion/settings.js';
import { PeerError, RemoteError, UnlikeFitsError } from '../../src/errors.js';
import type { Problem, SolverName } from '../../src/methods/mobe/problem.js';
import { PROJECTIONS } from '../../src/models/family.js';
import type { FitResult, FitTask, Written } from '../compute/compute.js';
import type { Fitter, FitterPool } from '../compute/fitter.js';
import type { StateFile } from '../compute/state-file.js';
import type { ByteBudget } from '../flow/byte-budget.js';
import type { StageClocks } from '../flow/stage-clock.js';
import type { Factorization, NormalisedGroup } from '../records.js';
import type { FoldProgress, StepProgress } from '../run-options.js';

export interface FactoriseOptions {
  readonly pool: FitterPool;
  readonly budget: ByteBudget;
  readonly settings: Settings;
  readonly memory: MemoryPlan;
  readonly written: Written;
  /** Where a running fit saves its state. */
  readonly stateOf?: ((group: GroupPlan) => StateFile) | undefined;
  readonly onStep: (progress: StepProgress) => void;
  readonly onFold: (progress: FoldProgress) => void;
  readonly clocks?: StageClocks | undefined;
  /** A fitter is gone; what it had is done again by another. */
  readonly onLost: (fitter: string, reason: Error) => void;
}

/** Fits a group by whichever fitter is free. Its experts are handed out one at a time; a fitter that is lost is replaced. */
export async function factorise(
  { group, experts, sigma }: NormalisedGroup,
  options: FactoriseOptions,
): Promise<Factorization> {
  const { pool, budget, settings, memory, written } = options;
  const { layer, projection, group: part, groups } = group;
  const key = { layer, projection, group: part, groups };
  const task: FitTask = {
    problem: group.problem as Problem,
    format: group.format,
    dtype: group.dtype,
    experts,
    sigma,
    solver: settings.solver as SolverName,
    options: {
      steps: settings.steps,
      learningRate: settings.learningRate,
      batchExperts: memory.batchExperts,
      holdTargets: memory.holdTargets,
      seed: groupSeed(settings.seed, group),
      label: groupLabel(group),
    },
    state: options.stateOf?.(group),
  };
  const timed = <T>(bytes: number, task: () => Promise<T>): Promise<T> =>
    options.clocks ? options.clocks.work('fit', bytes, task) : task();
  const fitSomewhere = async (): Promise<{ fitter: Fitter; result: FitResult }> => {
    for (;;) {
      const fitter = await pool.acquire();
      try {
        const fit = (): Promise<FitResult> => fitter.fit(task, (step) => options.onStep({ ...key, ...step }));
        return { fitter, result: await timed(sourceBytes(group), fit) };
      } catch (error) {
        lose(fitter, error as Error);
      }
    }
  };
  /** Throws again what is no reason to go on with another. */
  const lose = (fitter: Fitter, error: Error): void => {
    if (!(error instanceof PeerError) || error instanceof RemoteError) {
      pool.release(fitter);
      throw error;
    }
    options.onLost(fitter.name, error);
    pool.lose(fitter, error);
  };
  const first = await fitSomewhere();
  let { fitter } = first;
  return {
    group,
    sigma,
    ...first.result,
    async expert(expert) {
      options.onFold({ ...key, expert, experts: group.experts.length });
      for (;;) {
        try {
          const folding = fitter;
          return await timed(0, () => folding.fold(expert, written));
        } catch (error) {
          lose(fitter, error as Error);
        }
        const again = await fitSomewhere();
        ({ fitter } = again);
        // What was written so far belongs to the first fit.
        if (!sameFactors(first.result, again.result)) throw new UnlikeFitsError(groupLabel(group), fitter.name);
      }
    },
    release() {
      pool.release(fitter);
      budget.release(sourceBytes(group));
    },
  };
}

const sameFactors = (a: FitResult, b: FitResult): boolean =>
  Buffer.compare(a.bases, b.bases) === 0 && Buffer.compare(a.coefficients, b.coefficients) === 0;

/** Every group has random numbers of its own, whichever others are converted with it. */
function groupSeed(seed: number, { layer, projection, group }: GroupKey): number {
  const own = layer * 8 + PROJECTIONS.indexOf(projection) + 1 + group * GROUP_STRIDE;
  return (seed * 1_000_003 + own) % Number.MAX_SAFE_INTEGER;
}

/** More than any layer's number in the seed. */
const GROUP_STRIDE = 2 ** 20;
