/** The metric of a run's fits, and what the run's record says of it. */
import type { RecordFacts } from '../calibration/record.js';
import { SHRINKAGE_RULE } from '../calibration/shrinkage.js';

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

/** The settings of a metric and of its record, as the run's record keeps them. */
export function calibrationRecord(facts: RecordFacts, metric: MetricPlan | undefined) {
  const { version: _, sourceFingerprint: __, layers: ___, ...rest } = facts;
  return {
    calibration: { ...rest, tokens: facts.sequences * facts.length },
    metric: metric && { ...metric, shrinkage: SHRINKAGE_RULE },
  };
}
