/** The input that both kinds of measurements share. */
import type { CalibrationRecord } from '../../src/calibration/record.js';
import type { Checkpoint } from '../../src/checkpoint/open-checkpoint.js';
import type { Runner } from '../../src/inference/runner.js';
import type { WeightReader } from '../../src/inference/weight.js';
import type { ExpertLayer } from '../../src/models/family.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { FinishedParts } from './finished-parts.js';
import type { Probe } from './probe-weights.js';

/** A measurement of sensitivities. */
export interface Measurement {
  readonly source: Checkpoint;
  readonly record: CalibrationRecord;
  /** By layer. */
  readonly probes: ReadonlyMap<number, readonly Probe[]>;
  /** A layer that has probes. */
  readonly layer: (number: number) => ExpertLayer;
  readonly runner: Runner;
  /** Reads the source's weights. */
  readonly reader: WeightReader;
  readonly probeReader: RangeReader;
  /** Memory for the measurement's own data. */
  readonly bytes: number;
  /** The rest of the budget, for messages. */
  readonly reservedBytes: number;
  /** The most tokens of the record that are used. */
  readonly tokens: number;
  readonly seed: number;
  /** The most variants of the model that run together. */
  readonly mostVariants: number;
  readonly parts: FinishedParts;
  readonly onProgress: (done: number, total: number) => void;
  readonly signal: AbortSignal | undefined;
  /** Lets signals be handled. Throws `InterruptedError` if the measurement is aborted. */
  readonly pause: () => Promise<void>;
}
