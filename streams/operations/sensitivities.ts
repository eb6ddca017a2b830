/** Measures what a loss of weights in one projection does to the model. */
import { setImmediate } from 'node:timers/promises';
import type { CalibrationRecord } from '../../src/calibration/record.js';
import { type Checkpoint, fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import type { FactorFile } from '../../src/conversion/factor-files.js';
import type { Settings } from '../../src/conversion/settings.js';
import { chooseEngine } from '../../src/engine/choose-engine.js';
import { createEngine } from '../../src/engine/create-engine.js';
import { InterruptedError, OtherRecordError } from '../../src/errors.js';
import { PROCESS_BYTES, TENSOR_BYTES } from '../../src/inference/memory-budget.js';
import { usefulThreads } from '../../src/inference/run-options.js';
import { Runner } from '../../src/inference/runner.js';
import { WeightReader } from '../../src/inference/weight.js';
import { detectModel, sizesOf } from '../../src/models/detect.js';
import { checkComputable } from '../../src/models/expert-form.js';
import type { ExpertLayer } from '../../src/models/family.js';
import { LocalFiles } from '../../src/sources/files.js';
import { openParts } from './finished-parts.js';
import { measureKl } from './kl-sensitivities.js';
import { measureLocal } from './local-sensitivities.js';
import { probesByLayer } from './probe-weights.js';
import type { Measurement } from './sensitivity-measurement.js';

/** The measured loss: the error of a layer's output, or the KL divergence of the model's predictions. */
export type SensitivityKind = NonNullable<Settings['sensitivity']>;

/**
 * The most tokens of the record that are used by default. On the fixture an allocation by the KL of 512 tokens has 3 to 6 % more
 * KL than one of 19 200, of 2048 1 to 2 %, of 4096 none; by the local losses of 1024 tokens or more 4 to 6 %.
 */
export const SENSITIVITY_TOKENS: Readonly<Record<SensitivityKind, number>> = { local: 2048, kl: 2048 };

/** The input of `measureSensitivities`. */
export interface SensitivityRequest {
  /** The source, open. The caller closes its files. */
  readonly source: Checkpoint;
  readonly record: CalibrationRecord;
  /** The probes: short fits of whole projections. A projection without a probe is not measured. */
  readonly probes: readonly FactorFile[];
  readonly kind: SensitivityKind;
  readonly settings: Pick<Settings, 'engine' | 'threads' | 'maxMemory' | 'seed'> & {
    /** The most tokens of the record that are used; default: `SENSITIVITY_TOKENS`. */
    readonly tokens?: number | undefined;
    /** For `kl`: the most variants of the model that run together; default: as many as fit in memory. */
    readonly mostVariants?: number | undefined;
  };
  /** A folder in which finished parts are kept, so that a later call with the same request goes on from them. */
  readonly workspace?: string | undefined;
  /** Called after each part of the work. `total` is all of it, in the same unit. */
  readonly onProgress?: ((done: number, total: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Measures for each projection that has a probe what happens if only this projection is replaced by the weights that its probe
 * rebuilds. Keys of the result: `projectionKey`.
 *
 * `local`: the relative square of the change of the layer's output against the residual stream after it, by directions
 * (`outputLosses`), over some tokens of the layer's record. It needs no run of the model.
 *
 * `kl`: the mean KL divergence of the model's predictions from the original's, in nats, over some sequences of the record. The model
 * must be one that this program runs.
 *
 * Throws `UnsupportedExpertsError`, `FactorMismatchError`, `RecordError`, `BudgetTooSmallError`, and `InterruptedError` if
 * `signal` is aborted.
 */
export async function measureSensitivities(request: SensitivityRequest): Promise<ReadonlyMap<string, number>> {
  const { source, record, probes: files, kind, settings, workspace, onProgress, signal } = request;
  checkComputable(source);
  const model = detectModel(source);
  const sourceFingerprint = await fingerprint(source);
  if (record.facts.sourceFingerprint !== sourceFingerprint) throw new OtherRecordError(record.name);
  const probes = probesByLayer(files, model, sourceFingerprint);
  const layers = new Map(model.layers.map((layer) => [layer.layer, layer]));
  const width = Math.max(...model.layers.map((layer) => sizesOf(layer).cols));
  const threads = Math.min(settings.threads, usefulThreads(undefined, width));
  const { name } = await chooseEngine(settings.engine, threads);
  const tokens = settings.tokens ?? SENSITIVITY_TOKENS[kind];
  const { seed, maxMemory } = settings;
  const { texts, sequences, length, seed: recordSeed } = record.facts;
  const parts = await openParts(workspace, {
    kind,
    sourceFingerprint,
    record: { texts, sequences, length, seed: recordSeed, fingerprint: record.facts.sourceFingerprint },
    probes: files.map(({ metadata, problem, dtype }) => ({ metadata, problem, dtype })),
    settings: { tokens, seed, engine: name, threads },
  });
  const engine = await createEngine(name, { threads });
  const runner = new Runner(engine);
  const probeFiles = new LocalFiles();
  const reservedBytes = PROCESS_BYTES + TENSOR_BYTES * source.tensors.size;
  const measurement: Measurement = {
    source,
    record,
    probes,
    layer: (number) => layers.get(number) as ExpertLayer,
    runner,
    reader: new WeightReader(source.files),
    probeReader: probeFiles,
    bytes: maxMemory - reservedBytes,
    reservedBytes,
    tokens,
    seed,
    mostVariants: settings.mostVariants ?? Number.POSITIVE_INFINITY,
    parts,
    onProgress: onProgress ?? (() => {}),
    signal,
    async pause() {
      await setImmediate(); // engine runs block the thread, so signals are handled here
      if (signal?.aborted) throw new InterruptedError();
    },
  };
  try {
    return await (kind === 'local' ? measureLocal(measurement) : measureKl(measurement));
  } finally {
    await runner.dispose();
    await probeFiles.close();
  }
}
