/** The metric of each group: what is measured, in which form it is held, and the memory that it takes. */

import { tokensAtOnce } from '../calibration/expert-statistics.js';
import type { RecordFacts } from '../calibration/record.js';
import type { MetricForm, MetricMatrixForm } from '../methods/method.js';
import { matrixElements } from '../methods/mobe/metric.js';
import { type Config, numberOf } from '../models/family.js';
import type { GroupPlan } from './group-plan.js';
import { MIB } from './memory-terms.js';
import type { MetricPlan, RecordSize } from './metric-record.js';

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

/** Floating-point operations of the metrics of a run's groups, counted as matrix products. */
export const weighingOperations = ({ metric, size }: PlannedMetric, groups: readonly GroupPlan[]): number =>
  groups.reduce((sum, group) => {
    const { rows: p, cols: d } = group.problem;
    const { rows, columns } = jobMetric(metric, group)?.form ?? {};
    const tokens = (size.tokens * size.expertsPerToken) / group.groups;
    return sum + 2 * tokens * ((columns ? d * d : rows ? p * p : 0) + (rows ? 2 * p * d : 0));
  }, 0);
