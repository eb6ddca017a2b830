import type { MetricForm } from '../methods/method.js';

/** The metric of a group as a job carries it. */
export interface GroupMetric {
  readonly form: MetricForm;
  /** For each expert its matrices as f32, little-endian: those of the rows, then those of the columns, as `form` has them. */
  readonly experts: ReadonlyArray<Uint8Array<ArrayBuffer>>;
}
