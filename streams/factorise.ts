import _ from 'highland';
import { type GroupKey, groupLabel, sourceBytes } from '../src/conversion/groups.js';
import type { MemoryPlan } from '../src/conversion/memory.js';
import type { Settings } from '../src/conversion/settings.js';
import { PROJECTIONS } from '../src/models/family.js';
import type { ByteBudget } from './byte-budget.js';
import type { FoldedExpert, Written } from './compute.js';
import { compose } from './highland.js';
import type { FoldProgress, StepProgress } from './progress.js';
import type { Factorization, NormalisedGroup } from './records.js';
import type { WorkerPool } from './worker-pool.js';

export interface FactoriseOptions {
  readonly pool: WorkerPool;
  readonly budget: ByteBudget;
  readonly settings: Settings;
  readonly memory: MemoryPlan;
  readonly written: Written;
  readonly onStep: (progress: StepProgress) => void;
  readonly onFold: (progress: FoldProgress) => void;
}

/** Fits as many groups side by side as there are workers; they leave in the order in which they came. */
export function factorise(
  groups: AsyncIterable<NormalisedGroup>,
  options: FactoriseOptions,
): AsyncGenerator<Factorization> {
  return compose(groups, (stream) =>
    stream.map((group) => _(factoriseGroup(group, options))).parallel(options.pool.size),
  );
}

async function factoriseGroup(
  { group, experts, sigma }: NormalisedGroup,
  options: FactoriseOptions,
): Promise<Factorization> {
  const { pool, budget, settings, memory, written } = options;
  const { layer, projection, group: part, groups } = group;
  const key = { layer, projection, group: part, groups };
  const worker = await pool.acquire();
  const release = (): void => {
    pool.release(worker);
    budget.release(sourceBytes(group));
  };
  const fitted = await worker.call(
    'fit',
    [
      {
        problem: group.problem,
        format: group.format,
        dtype: group.dtype,
        experts,
        sigma,
        solver: settings.solver,
        options: {
          steps: settings.steps,
          learningRate: settings.learningRate,
          batchExperts: memory.batchExperts,
          holdTargets: memory.holdTargets,
          seed: groupSeed(settings.seed, group),
          label: groupLabel(group),
        },
      },
    ],
    {
      onStep: (step) => options.onStep({ ...key, ...step }),
      transfer: experts.map(({ buffer }) => buffer),
    },
  );
  const fold = (expert: number): Promise<FoldedExpert> => {
    options.onFold({ ...key, expert, experts: group.experts.length });
    return worker.call('fold', [expert, written]);
  };
  return { group, sigma, ...fitted, expert: fold, release };
}

/** Every group has random numbers of its own, whichever others are converted with it. */
function groupSeed(seed: number, { layer, projection, group }: GroupKey): number {
  const own = layer * 8 + PROJECTIONS.indexOf(projection) + 1 + group * GROUP_STRIDE;
  return (seed * 1_000_003 + own) % Number.MAX_SAFE_INTEGER;
}

/** More than any layer's number in the seed. */
const GROUP_STRIDE = 2 ** 20;
