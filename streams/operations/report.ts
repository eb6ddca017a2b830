/** Writes the HTML page of a result. */
import { basename, join, resolve } from 'node:path';
import { PAGE_FILE } from '../../src/checkpoint/side-files.js';
import { readReport } from '../../src/conversion/existing-output.js';
import { conversionPage } from '../../src/conversion/report-page.js';
import { REPORT_FILE, type StoredReport } from '../../src/conversion/run-report.js';
import { NotACheckpointError, OptionError } from '../../src/errors.js';
import { nodeFileSystem, writeSynced } from '../../src/file-system.js';
import type { EvaluateOptions } from '../../src/inference/run-options.js';
import { asWriteError } from '../../src/output/shard-writer.js';
import { type EvaluateHooks, type Evaluation, evaluate } from './evaluate.js';

/** Options of `writeReport`. */
export interface ReportOptions {
  /** Path of the page; by default it lies in the result's folder. */
  readonly html?: string | undefined;
  /** A text on which the result is scored. */
  readonly text?: string | undefined;
  /** Options of the scoring. `against` is the source model, to compare with. */
  readonly scoring?: EvaluateOptions;
}

/** The result of `writeReport`. */
export interface WrittenReport {
  readonly page: string;
  readonly record: StoredReport;
  readonly evaluation?: Evaluation;
}

/**
 * Writes the page of the result in `out` from its record. Throws `NotACheckpointError` if there is no record, `OptionError` if
 * there is nothing to score, and what `evaluate` throws.
 */
export async function writeReport(
  out: string,
  { html, text, scoring }: ReportOptions = {},
  hooks: EvaluateHooks = {},
): Promise<WrittenReport> {
  const folder = resolve(out);
  const record = await readReport(folder);
  if (!record)
    throw new NotACheckpointError(folder, `it has no ${REPORT_FILE} that can be read, so it is no result of mobe's`);
  if (text === undefined && scoring?.against !== undefined)
    throw new OptionError('--against', 'scores compare models on a text: give --text too');
  if (text !== undefined && record.kind === 'fit')
    throw new OptionError('--text', `${folder} holds factors, which are no model: "mobe export" makes one of them`);
  const evaluation = text === undefined ? undefined : await evaluate([out], text, scoring, hooks);
  const page = resolve(html ?? join(folder, PAGE_FILE));
  await replaceFile(page, conversionPage(basename(folder), record, evaluation?.models));
  return { page, record, ...(evaluation && { evaluation }) };
}

/** Replaces a file atomically, so that a reader finds the old page or the new one. */
async function replaceFile(path: string, text: string): Promise<void> {
  const temporary = `${path}.new`;
  try {
    await writeSynced(nodeFileSystem, temporary, [new TextEncoder().encode(text)]);
    await nodeFileSystem.rename(temporary, path);
  } catch (error) {
    await nodeFileSystem.remove(temporary).catch(() => {});
    throw asWriteError(path, error);
  }
}
