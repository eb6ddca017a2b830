/** Chooses the metric of a run's fits by the memory that it takes. */
import { formatBytes } from '../format.js';
import type { GroupPlan } from './group-plan.js';
import type { MemoryPlan } from './memory-plan.js';
import { MIB } from './memory-terms.js';
import type { MetricPlan, RecordSize } from './metric-record.js';
import type { Settings } from './settings.js';

/** A chosen metric, and the plan of the memory with it. */
export interface ChosenMetric {
  readonly metric: MetricPlan | undefined;
  readonly memory: MemoryPlan;
  /** Says which form was chosen and why, for `mobe plan`. */
  readonly note?: string | undefined;
}

/** The default metric may add this share to the memory of the run without one, or so many bytes to that of a small run. */
const MEMORY_SHARE = 0.25;
const SMALL_BYTES = 256 * MIB;

/** Ranks are multiples of this, where half of the width is as much. */
const RANK_STEP = 64;

/**
 * Chooses the metric that the settings ask for. By default it is full if that adds at most a quarter to the memory of the run without
 * one, else of the highest rank that does.
 * @param memoryWith plans the memory of the run with a metric; throws `BudgetTooSmallError` as `planMemory`
 */
export function chooseMetric(
  groups: readonly GroupPlan[],
  { metric: wanted, repair, solver }: Pick<Settings, 'metric' | 'repair' | 'solver'>,
  size: RecordSize | undefined,
  memoryWith: (metric: MetricPlan | undefined) => MemoryPlan,
): ChosenMetric {
  const fit = (wanted ?? (solver === 'adam' ? 'none' : 'full')) !== 'none';
  if (!size || groups.length === 0 || (!fit && repair === 'none'))
    return { metric: undefined, memory: memoryWith(undefined) };
  const planned = (metric: MetricPlan): ChosenMetric => {
    const memory = memoryWith(metric);
    const use = groups[0]?.coded ? 'rounding' : metric.fit ? 'fits and their last A' : 'the last A of fits';
    return { metric, memory, note: describe(metric, use, plain, memory, perExpert, width) };
  };
  const plain = memoryWith(undefined);
  const width = Math.max(...groups.map(({ problem }) => problem.cols));
  const experts = Math.max(...groups.map((group) => group.problem.experts * group.groups));
  const perExpert = (size.tokens * size.expertsPerToken) / experts;
  if (wanted === 'full') return planned({ form: 'full', fit });
  // The tokens themselves are the factor of the covariance, and a smaller one, where they are few.
  const enough = Math.ceil((2 * perExpert) / RANK_STEP) * RANK_STEP;
  const ranks = ranksFor(width);
  const few = ranks.find((rank) => rank >= enough);
  const most = Math.max(plain.expectedBytes * (1 + MEMORY_SHARE), plain.expectedBytes + SMALL_BYTES);
  const fits = ({ memory }: ChosenMetric): boolean =>
    memory.expectedBytes <= most &&
    memory.holdTargets === plain.holdTargets &&
    memory.workers === plain.workers &&
    memory.holdParts === plain.holdParts;
  const candidates: MetricPlan[] = [
    ...(wanted === 'low-rank' || few !== undefined ? [] : [{ form: 'full', fit } as const]),
    ...ranks
      .filter((rank) => few === undefined || rank <= few)
      .reverse()
      .map((rank) => ({ form: 'low-rank', rank, fit }) as const),
  ];
  for (const candidate of candidates.slice(0, -1)) {
    const chosen = tryPlan(() => planned(candidate));
    if (chosen && fits(chosen)) return chosen;
  }
  return planned(candidates.at(-1) as MetricPlan);
}

/** Ranks to choose from, rising: the multiples of 64 up to half of the width, or half of it. */
function ranksFor(width: number): number[] {
  const half = Math.max(1, Math.floor(width / 2));
  if (half < RANK_STEP) return [half];
  return Array.from({ length: Math.floor(half / RANK_STEP) }, (_, i) => (i + 1) * RANK_STEP);
}

function tryPlan<T>(plan: () => T): T | undefined {
  try {
    return plan();
  } catch {
    return undefined;
  }
}

/** The share of a full metric's gain in KL that a low rank keeps, by the share of the width that it is: docs/solver.md. */
const KEPT_GAIN = [
  { rank: 1 / 8, gain: 0.38 },
  { rank: 1 / 3, gain: 0.62 },
  { rank: 1, gain: 1 },
] as const;

/** The expected share, interpolated in the logarithm of the rank. */
function expectedGain(rank: number): number {
  const [low, high] = rank < KEPT_GAIN[1].rank ? KEPT_GAIN : [KEPT_GAIN[1], KEPT_GAIN[2]];
  const part = Math.log(rank / low.rank) / Math.log(high.rank / low.rank);
  return Math.max(0, low.gain + part * (high.gain - low.gain));
}

function describe(
  { form, rank }: MetricPlan,
  use: string,
  plain: MemoryPlan,
  memory: MemoryPlan,
  perExpert: number,
  width: number,
): string {
  const more = memory.expectedBytes - plain.expectedBytes;
  const kind =
    form === 'full'
      ? 'full covariances'
      : `covariances of rank ${rank} of ${width}, expected to keep about ${Math.round(100 * expectedGain((rank as number) / width))} % of what full ones gain`;
  return `${kind}, for ${use}; ${formatBytes(more)} more memory (${Math.round((100 * more) / plain.expectedBytes)} %); about ${Math.round(perExpert)} tokens an expert`;
}
