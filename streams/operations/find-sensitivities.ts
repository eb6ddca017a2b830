/** Sensitivities of a run's projections. They are kept with the probes in the calibration record. */
import { createHash } from 'node:crypto';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { openRecord } from '../../src/calibration/open-record.js';
import type { RecordFacts } from '../../src/calibration/record.js';
import type { FactorFile } from '../../src/conversion/factor-files.js';
import type { RunSettings } from '../../src/conversion/settings.js';
import { nodeFileSystem, writeSynced } from '../../src/file-system.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { RunOptions } from '../run-options.js';
import { openCalibration } from './open-calibration.js';
import type { ProbePlan } from './probe.js';
import { measureSensitivities, type SensitivityKind } from './sensitivities.js';

/** The options of a run that a measurement has a use for. */
export type SensitivityRun = Pick<RunOptions, 'onProgress' | 'signal' | 'peers' | 'fileSystem' | 'record'>;

/** The kind of measurement, and its probes. */
export interface SensitivitySearch {
  readonly model: Source;
  /** The calibration record. */
  readonly folder: string;
  readonly kind: SensitivityKind;
  readonly probes: Pick<ProbePlan, 'folder'>;
  readonly files: readonly FactorFile[];
  readonly settings: Pick<RunSettings, 'engine' | 'threads' | 'maxMemory' | 'seed'>;
}

const stored = z.strictObject({ version: z.literal(1), sensitivities: z.record(z.string(), z.number().nonnegative()) });

/** The file of sensitivities that were measured on the text of a record. */
const fileOf = ({ folder }: Pick<ProbePlan, 'folder'>, kind: SensitivityKind, facts: RecordFacts): string =>
  join(
    folder,
    `sensitivities-${kind}-${createHash('sha256').update(JSON.stringify(facts)).digest('hex').slice(0, 12)}.json`,
  );

async function read(file: string): Promise<ReadonlyMap<string, number> | undefined> {
  try {
    return new Map(Object.entries(stored.parse(JSON.parse(await readFile(file, 'utf8'))).sensitivities));
  } catch {
    return undefined; // missing or damaged: they are measured again
  }
}

/** Whether the sensitivities were measured. */
export async function areSensitivitiesKnown(
  folder: string,
  kind: SensitivityKind,
  probes: Pick<ProbePlan, 'folder'>,
): Promise<boolean> {
  const record = await openRecord(folder);
  await record.close();
  return (await read(fileOf(probes, kind, record.facts))) !== undefined;
}

/** Reads the sensitivities by `projectionKey`, or measures them. Throws as `openRecord` and `measureSensitivities` do. */
export async function findSensitivities(
  { model, folder, kind, probes, files, settings }: SensitivitySearch,
  { onProgress, signal, ...run }: SensitivityRun,
): Promise<ReadonlyMap<string, number>> {
  const source = await openSource(model, run);
  const record = await openCalibration(folder, source, run);
  try {
    const file = fileOf(probes, kind, record.facts);
    const known = await read(file);
    if (known) return known;
    let told = false;
    const found = await measureSensitivities({
      ...{ source, record, probes: files, kind, settings, signal },
      workspace: join(probes.folder, `measuring-${kind}`),
      onProgress(done, total) {
        if (!told) onProgress?.({ kind: 'phase', phase: 'sensitivity', groups: 0, bytes: total });
        told = true;
        onProgress?.({ kind: 'bytes', bytes: done });
      },
    });
    const text = JSON.stringify({ version: 1, sensitivities: Object.fromEntries(found) });
    await writeSynced(run.fileSystem ?? nodeFileSystem, file, [new TextEncoder().encode(text)]);
    return found;
  } finally {
    await record.close();
    await source.files.close();
  }
}
