/** Decides what to do with an output folder that already has files. */
import { access } from 'node:fs/promises';
import { join } from 'node:path';
import { z } from 'zod';
import { CONFIG_FILE, INDEX_FILE, readJsonObject } from '../checkpoint/open-checkpoint.js';
import { CARD_FILE, PAGE_FILES } from '../checkpoint/side-files.js';
import { OutputNotEmptyError } from '../errors.js';
import { fileIn } from '../location.js';
import { notEmpty } from '../output/folder-checks.js';
import { MANIFEST_FILE } from '../output/manifest.js';
import { listOutput } from '../output/output-folder.js';
import { type Files, LocalFiles } from '../sources/files.js';
import { REPORT_FILE, type StoredReport } from './run-report.js';
import { parseReport } from './stored-report.js';

/** Reads the record in a folder; undefined if there is none or it cannot be read. */
export async function readReport(folder: string, files: Files = new LocalFiles()): Promise<StoredReport | undefined> {
  try {
    return parseReport(await readJsonObject(fileIn(folder, REPORT_FILE), files));
  } catch {
    return undefined;
  } finally {
    await files.close();
  }
}

/** The schema of `WantedOutput`. */
export const wantedOutput = z.strictObject({
  /** `copy` is an unchanged checkpoint, which has no record. */
  kind: z.enum(['compress', 'export', 'expand', 'fit', 'repair', 'copy']),
  sourceFingerprint: z.string().max(128),
  settings: z.record(z.string(), z.unknown()),
});

/** The facts that identify a result: two runs that agree in them write the same result. */
export type WantedOutput = Readonly<z.infer<typeof wantedOutput>>;

/** The state of an output folder. */
export type ExistingOutput =
  /** The wanted result is already there and complete. */
  | { done: StoredReport }
  /** The run may write. These files are replaced (only with `force`). */
  | { replaces: string[] };

/** Examines an output folder. Throws `OutputNotEmptyError` if it has other files or another result; the message says which. */
export async function examineOutput(folder: string, wanted: WantedOutput, force: boolean): Promise<ExistingOutput> {
  const held = await listOutput(folder);
  if (!held?.length) return { replaces: [] };
  const report = await readReport(folder);
  const replaces = replaceable(folder, held, report, wanted, force);
  if (force || !report) return { replaces };
  for (const file of report.files) {
    await access(join(folder, file)).catch(() => {
      throw new OutputNotEmptyError(folder, `holds this result, but ${file} is missing from it`);
    });
  }
  return { done: report };
}

/**
 * The files of an earlier result that a run replaces; without `force` there are none. Throws `OutputNotEmptyError` if they are in
 * the way.
 * @param held names of the files at the place
 * @param report the record among them
 */
export function replaceable(
  place: string,
  held: readonly string[],
  report: StoredReport | undefined,
  wanted: WantedOutput,
  force: boolean,
): string[] {
  // A record may come from anybody, and the files that it lists are removed. So only names that are at the place count.
  const own = report ? topLevel([...report.files, ...PAGE_FILES]) : undefined;
  if (force) return held.filter((name) => own?.has(name) ?? isCheckpointFile(name));
  if (held.length === 0) return [];
  if (!report) throw notEmpty(place, held);
  const difference = describeDifference(report, wanted);
  if (difference) throw new OutputNotEmptyError(place, `holds another result (${difference})`);
  return [];
}

const isCheckpointFile = (name: string): boolean =>
  /\.safetensors$/.test(name) ||
  [INDEX_FILE, CONFIG_FILE, MANIFEST_FILE, REPORT_FILE, CARD_FILE, ...PAGE_FILES].includes(name);

const topLevel = (files: readonly string[]): ReadonlySet<string | undefined> =>
  new Set(files.map((file) => file.split('/')[0]));

/** Settings whose values are too long to show. */
const TOO_LONG: Readonly<Record<string, string>> = {
  allocation: 'another allocation of bases',
  calibration: 'another calibration record, or none',
};

/** Describes how a result differs from the wanted one; undefined if it is the same. */
export function describeDifference(
  report: Pick<WantedOutput, 'kind' | 'sourceFingerprint' | 'settings'>,
  wanted: WantedOutput,
): string | undefined {
  if (report.kind !== wanted.kind) return `made by mobe ${report.kind}`;
  if (report.sourceFingerprint !== wanted.sourceFingerprint) return 'made from another source';
  const keys = new Set([...Object.keys(report.settings), ...Object.keys(wanted.settings)]);
  const differing = [...keys].filter(
    (key) => JSON.stringify(report.settings[key]) !== JSON.stringify(wanted.settings[key]),
  );
  const show = (value: unknown): string => (value === undefined ? 'default' : JSON.stringify(value));
  const tell = (key: string): string =>
    TOO_LONG[key] ?? `${key} ${show(report.settings[key])}, now ${show(wanted.settings[key])}`;
  return differing.length ? differing.map(tell).join('; ') : undefined;
}
