/** The request and the progress of `measureSensitivities`. */
import type { CalibrationRecord } from '../../src/calibration/record.js';
import type { Checkpoint } from '../../src/checkpoint/open-checkpoint.js';
import type { FactorFile } from '../../src/conversion/factor-files.js';
import type { Settings } from '../../src/conversion/settings.js';

/** What is measured: the error of a layer's output, or the KL divergence of the model's predictions. */
export type SensitivityKind = NonNullable<Settings['sensitivity']>;

/** Progress: `done` of `total` layers (local), or of the layers that all passes over the model run (kl). */
export interface SensitivityProgress {
  readonly done: number;
  readonly total: number;
}

/** What `measureSensitivities` needs. */
export interface SensitivityRequest {
  /** The source, open. The caller closes its files. */
  readonly source: Checkpoint;
  readonly record: CalibrationRecord;
  /** The probes: short fits of whole projections. A projection without a probe is not measured. */
  readonly probes: readonly FactorFile[];
  readonly kind: SensitivityKind;
  readonly settings: Pick<Settings, 'engine' | 'threads' | 'maxMemory' | 'seed'> & {
    /** The most tokens of the record that are used; default: `SENSITIVITY_TOKENS[kind]`. */
    readonly tokens?: number | undefined;
  };
  /** A folder in which finished parts are kept, so that a later call with the same request goes on from them. */
  readonly workspace?: string | undefined;
  readonly onProgress?: ((progress: SensitivityProgress) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Measures for each projection that has a probe how much the model suffers if only this projection is replaced by the weights that
 * its probe rebuilds. Keys: `projectionKey`.
 */
export type MeasureSensitivities = (request: SensitivityRequest) => Promise<ReadonlyMap<string, number>>;
