/** Writes the files of a result beside its shards: side files, config, index, model card, manifest and record. */
import { readFile } from 'node:fs/promises';
import { CONFIG_FILE } from '../../src/checkpoint/open-checkpoint.js';
import { CARD_FILE, listSideFiles } from '../../src/checkpoint/side-files.js';
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import { modelCard } from '../../src/conversion/model-card.js';
import {
  encodeReport,
  fitWarnings,
  type GroupReport,
  peakRssBytes,
  REPORT_FILE,
  type StoredReport,
} from '../../src/conversion/run-report.js';
import { modelName } from '../../src/location.js';
import type { ModellingFile } from '../../src/models/modelling-files.js';
import { type ConfigChanges, editConfig } from '../../src/models/native.js';
import { encodeIndex } from '../../src/output/layout.js';
import { encodeManifest, MANIFEST_FILE } from '../../src/output/manifest.js';
import type { Output } from '../../src/output/output.js';
import { seal } from '../../src/output/seal.js';
import { type ByteRange, type RangeReader, READ_BYTES } from '../../src/sources/files.js';
import type { HashedOutput } from '../flow/hash-output.js';

/** The small files that a checkpoint needs beside its shards. */
export interface Companions {
  /** Changes to the source's config.json. */
  readonly config: ConfigChanges;
  /**
   * Modelling files of this project: those to add to a native output, and those not to copy from the source of an expansion.
   */
  readonly modelling?: { readonly add?: readonly ModellingFile[]; readonly leave?: readonly string[] };
  /** The new text of side files that the result does not copy unchanged, by target; undefined leaves the file out. */
  readonly edited?: ReadonlyMap<string, string | undefined>;
}

/** The part of a conversion that its small files record. */
export interface Recorded {
  readonly plan: ConversionPlan;
  /** The small files of a checkpoint; undefined for factor files, which have none. */
  readonly companions?: Companions;
  readonly record: Pick<StoredReport, 'kind' | 'sourceFingerprint' | 'engine' | 'settings'>;
  /** `performance.now()` when the run began. */
  readonly started: number;
}

/**
 * Writes the small files, the record last, and returns the record.
 * @param hashed the output with its hashes, from which the manifest is made; undefined for factor files, which have no manifest
 */
export async function writeSmallFiles(
  conversion: Recorded,
  output: Output,
  hashed: HashedOutput | undefined,
  groups: readonly GroupReport[],
): Promise<StoredReport> {
  const { plan, record, companions, started } = conversion;
  if (companions) await writeCompanions(conversion, companions, output, groups);
  const { parametersBefore, parametersAfter, bytesBefore, bytesAfter, layout } = plan;
  const warnings = fitWarnings(groups);
  const files = hashed ? [...hashed.written.keys(), MANIFEST_FILE] : layout.shards.map(({ file }) => file);
  const report: StoredReport = {
    version: 1,
    ...record,
    ...{ parametersBefore, parametersAfter, bytesBefore, bytesAfter },
    peakRssBytes: peakRssBytes(),
    seconds: (performance.now() - started) / 1000,
    groups,
    ...(warnings.length && { warnings }),
    files: [...files, REPORT_FILE].sort(),
  };
  // The manifest covers all files except the record, which has timings and a checksum of its own. So equal results have equal
  // manifests.
  if (hashed) await output.writeText(MANIFEST_FILE, encodeManifest(hashed.written));
  await output.writeText(REPORT_FILE, hashed ? seal(encodeReport(report)) : `${encodeReport(report)}\n`);
  return report;
}

async function writeCompanions(
  { plan, record }: Recorded,
  { config, modelling, edited }: Companions,
  output: Output,
  groups: readonly GroupReport[],
): Promise<void> {
  const { source, layout, format, parametersBefore, parametersAfter, bytesBefore, bytesAfter } = plan;
  const added = modelling?.add ?? [];
  const ours = new Set([...added.map(({ target }) => target), ...(modelling?.leave ?? [])]);
  for (const { source: file, target, bytes } of await listSideFiles(source)) {
    if (ours.has(target)) continue;
    const text = edited?.get(target);
    if (text !== undefined) await output.writeText(target, text);
    if (edited?.has(target)) continue;
    await output.writeFile(target, bytes, wholeFile({ file, start: 0, end: bytes }, source.files));
  }
  for (const { source: file, target } of added) await output.writeText(target, await readFile(file, 'utf8'));
  const index = encodeIndex(layout);
  if (index) await output.writeText(index.file, index.text);
  await output.writeText(CONFIG_FILE, editConfig(source.configText, config));
  const sizes = { parametersBefore, parametersAfter, bytesBefore, bytesAfter };
  await output.writeText(
    CARD_FILE,
    modelCard({ source: modelName(source.folder), format, ...sizes, settings: record.settings, groups }),
  );
}

/** Reads a file in parts. */
async function* wholeFile({ file, start, end }: ByteRange, reader: RangeReader): AsyncGenerator<Uint8Array> {
  for (let from = start; from < end; from += READ_BYTES) {
    yield reader.readRange({ file, start: from, end: Math.min(end, from + READ_BYTES) });
  }
}
