/** Chooses the metric of a run's fits: what is measured, and in which form it is held. */

import { tokensAtOnce } from '../calibration/expert-statistics.js';
import type { RecordFacts } from '../calibration/record.js';
import { SHRINKAGE_RULE } from '../calibration/shrinkage.js';
import { formatBytes } from '../format.js';
import type { MetricForm, MetricMatrixForm } from '../methods/method.js';
import { matrixElements } from '../methods/mobe/metric.js';
import { type Config, numberOf } from '../models/family.js';
import type { GroupPlan } from './group-plan.js';
import type { MemoryPlan } from './memory-plan.js';
import { MIB } from './memory-terms.js';
import type { Settings } from './settings.js';

/** The metric of a run. */
export interface MetricPlan {
  /** The form of covariances. */
  readonly form: 'full' | 'low-rank';
  /** The rank of the covariance of inputs, if it is low. */
  readonly rank?: number | undefined;
  /** Whether shared factors are fitted in it too, or only those of experts. */
  readonly fit: boolean;
}

/** What the memory of a metric depends on beside its form. */
export interface RecordSize {
  /** Tokens of the record. */
  readonly tokens: number;
  readonly expertsPerToken: number;
}

/** A metric and the record that it is made of. */
export interface PlannedMetric {
  readonly metric: MetricPlan;
  readonly size: RecordSize;
}

/**
 * Bytes that are held while the metric of an expert is made: the routing of a layer; a batch of tokens and what is computed of them;
 * the expert's weights; three copies of a covariance; what a low rank of it is computed with; and metrics that are made together.
 */
export function weighingBytes({ metric, size }: PlannedMetric, group: GroupPlan, groups: readonly GroupPlan[]): number {
  const described = jobMetric(metric, group);
  if (!described) return 0;
  const { rows: p, cols: d } = group.problem;
  const { rows, columns } = described.form;
  const covariance = columns ?? rows;
  const order = columns ? d : p;
  const { tokens, expertsPerToken } = size;
  const routing = tokens * (1 + 5 * expertsPerToken);
  const batch = tokensAtOnce(d) * (4 * d + 5 * p);
  const weights = rows ? 6 * p * d : 0;
  const rank = covariance?.rank ?? 0;
  const others = measuredTogether(metric, group, groups).filter((it) => it !== group);
  const ahead = others.reduce((sum, it) => sum + metricBytes(metric, it), 0);
  return ahead + 4 * (routing + batch + weights + 3 * order ** 2 + 6 * order * rank + 6 * rank ** 2);
}

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

/** The form in which a job of the group is fitted; undefined if it has no metric. */
export function jobMetric(
  plan: MetricPlan | undefined,
  { projection, problem }: Pick<GroupPlan, 'projection' | 'problem'>,
): { readonly form: MetricForm; readonly fit: boolean } | undefined {
  if (!plan) return undefined;
  const { fit } = plan;
  const covariance = (size: number): MetricMatrixForm => covarianceForm(plan, problem.cols, size);
  // The rows of a residual have no influence on the factors of an expert.
  if (projection === 'down_proj') return fit ? { form: { rows: covariance(problem.rows) }, fit } : undefined;
  const columns = covariance(problem.cols);
  return { form: { columns, ...(fit && { rows: { form: 'diagonal', shared: false } as const }) }, fit };
}

/** A covariance that is full takes no more memory than one of the inputs does. So a smaller one may have a higher rank. */
function covarianceForm({ form, rank = 0 }: MetricPlan, width: number, size: number): MetricMatrixForm {
  if (form === 'full' || size ** 2 <= width * rank) return { form: 'full', shared: false };
  const most = Math.max(1, Math.floor(size / 2));
  return { form: 'low-rank', rank: Math.min(most, Math.floor((width * rank) / size)), shared: false };
}

/** Bytes of the matrices of a group. */
export function metricBytes(plan: MetricPlan | undefined, group: GroupPlan): number {
  const { rows, columns } = jobMetric(plan, group)?.form ?? {};
  const { experts: n, rows: p, cols: d } = group.problem;
  const numbers = (form: MetricMatrixForm | undefined, size: number): number => (form ? matrixElements(form, size) : 0);
  return 4 * n * (numbers(rows, p) + numbers(columns, d));
}

/** Metrics of a layer that are together no larger than this are made in one pass over its tokens. */
const TOGETHER_BYTES = 64 * MIB;

/** The groups whose metrics are made with that of a group: those of its experts, if that takes little memory. */
export function measuredTogether(
  plan: MetricPlan,
  group: GroupPlan,
  groups: readonly GroupPlan[],
): readonly GroupPlan[] {
  const same = groups.filter((it) => it.layer === group.layer && it.group === group.group && jobMetric(plan, it));
  return same.reduce((sum, it) => sum + metricBytes(plan, it), 0) <= TOGETHER_BYTES ? same : [group];
}

/** Config keys with the number of experts that a token is sent to. */
const EXPERTS_PER_TOKEN = ['num_experts_per_tok', 'num_experts_per_token', 'moe_topk', 'moe_k', 'top_k_experts'];
const USUAL_EXPERTS_PER_TOKEN = 8;

/** The size of a record of a model with this config. */
export const recordSize = ({ sequences, length }: RecordFacts, config: Config): RecordSize => ({
  tokens: sequences * length,
  expertsPerToken:
    EXPERTS_PER_TOKEN.map((key) => numberOf(config, key)).find((it) => it !== undefined) ?? USUAL_EXPERTS_PER_TOKEN,
});

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
    return { metric, memory, note: describe(metric, plain, memory, perExpert, width) };
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
  { form, rank, fit }: MetricPlan,
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
  const use = fit ? 'fits and their last A' : 'the last A of fits';
  return `${kind}, for ${use}; ${formatBytes(more)} more memory (${Math.round((100 * more) / plain.expectedBytes)} %); about ${Math.round(perExpert)} tokens an expert`;
}

/** The settings of a metric and of its record, as the run's record keeps them. */
export const calibrationRecord = (facts: RecordFacts | undefined, metric: MetricPlan | undefined) => ({
  calibration: facts && {
    texts: facts.texts,
    tokens: facts.sequences * facts.length,
    sequences: facts.sequences,
    seed: facts.seed,
  },
  metric: metric && { ...metric, shrinkage: SHRINKAGE_RULE },
});
