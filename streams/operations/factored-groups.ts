/** Matches finished factors with the model that they belong to. */
import { createHash } from 'node:crypto';
import { type Checkpoint, CONFIG_FILE, fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { longSettings } from '../../src/conversion/allocation.js';
import { readReport } from '../../src/conversion/existing-output.js';
import { type FactorFile, openFactorFolder } from '../../src/conversion/factor-files.js';
import { compareGroups, groupLabel, groupOf } from '../../src/conversion/group-plan.js';
import { findNativeGroups } from '../../src/conversion/native-groups.js';
import { isFitted, isKept, type KeptGroupReport, REPORT_FILE } from '../../src/conversion/run-report.js';
import { NotACheckpointError, OtherResultError } from '../../src/errors.js';
import { mapValues } from '../../src/map-values.js';
import type { MoeModel } from '../../src/models/family.js';
import type { SourceFolder } from '../../src/sources/files.js';
import { openFiles, openSource, type Source } from '../machines/remote-files.js';
import type { RunHooks } from '../run-options.js';
import { matchFactors, nativeRanges } from '../stages/rebuild.js';
import type { ReportedGroup } from '../stages/repair-layer.js';

/**
 * The settings of the fit, with those that its record in the folder has at full length. `layers` is left out if the files come
 * from fits of different layers.
 */
export async function commonSettings(
  all: readonly FactorFile[],
  { folder, files }: SourceFolder,
): Promise<Readonly<Record<string, unknown>>> {
  const [first, ...others] = all.map(({ metadata }) => metadata.settings) as [Record<string, unknown>];
  const layersOf = ({ layers }: Record<string, unknown>): string | undefined => JSON.stringify(layers);
  const settings = longSettings(first, (await readReport(folder, files))?.settings);
  if (others.every((it) => layersOf(it) === layersOf(first))) return settings;
  const { layers: _, ...common } = settings;
  return common;
}

/** Finished factors of a model, from a native checkpoint or from factor files. */
export interface FactoredResult {
  readonly format: 'mobe' | 'factors';
  readonly groups: readonly ReportedGroup[];
  /** The reports of groups that were not compressed. */
  readonly kept: readonly KeptGroupReport[];
  /** The settings with which the factors were made. */
  readonly settings: Readonly<Record<string, unknown>>;
  readonly place: SourceFolder;
  /** Hash of the factors' description: it differs if they were fitted anew. */
  readonly fingerprint: string;
}

/**
 * Opens a native checkpoint or a folder of factor files, made from `model`. Throws `FactorMismatchError` or `OtherResultError`
 * if it was made from another, and `NotACheckpointError` if it has no record or is neither.
 */
export async function openFactored(
  result: Source,
  model: MoeModel,
  sourceFingerprint: string,
  run: RunHooks,
): Promise<FactoredResult> {
  const place = openFiles(result, run);
  const names = (await place.files.list(place.folder)).map(({ path }) => path);
  if (names.includes(CONFIG_FILE)) return openNative(await openSource(result, run), model, sourceFingerprint);
  const files = await openFactorFolder(place);
  const groups = files.map((file) => ({
    ...matchFactors(file, model, sourceFingerprint),
    report: { ...file.metadata.report, seconds: 0 },
  }));
  const described = files.map(({ metadata, tensors }) => [
    metadata,
    mapValues(tensors, ({ start, end }) => [start, end]),
  ]);
  return {
    ...{ format: 'factors', groups, kept: [], settings: await commonSettings(files, place), place },
    fingerprint: createHash('sha256').update(JSON.stringify(described)).digest('hex'),
  };
}

async function openNative(source: Checkpoint, model: MoeModel, sourceFingerprint: string): Promise<FactoredResult> {
  const { folder, files } = source;
  const found = findNativeGroups(source);
  const report = await readReport(folder, files);
  if (!report) throw new NotACheckpointError(folder, `it has no ${REPORT_FILE}, so what was converted is not known`);
  if (report.sourceFingerprint !== sourceFingerprint) throw new OtherResultError(folder);
  const groups = found.map((native): ReportedGroup => {
    const group = groupOf(model, native, {}, native);
    const own = report.groups.filter(isFitted).find((it) => compareGroups(it, native) === 0);
    if (!group) throw new OtherResultError(folder, `its shapes do not fit ${groupLabel(native)}`);
    if (!own) throw new NotACheckpointError(folder, `${REPORT_FILE} does not tell of ${groupLabel(native)}`);
    return {
      group: { ...group, dtype: native.dtype, stored: native.stored },
      ...nativeRanges(native, source),
      dense: group.experts,
      report: own,
    };
  });
  return {
    ...{ format: 'mobe', groups, kept: report.groups.filter(isKept), settings: report.settings, place: source },
    fingerprint: await fingerprint(source),
  };
}
