/** The page beside a result. */
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
  /** Where to write the page; by default into the result. */
  readonly html?: string | undefined;
  /** To score the result on. */
  readonly text?: string | undefined;
  /** For scoring; `against`: the source, to be compared with. */
  readonly scoring?: EvaluateOptions;
}

/** The page that was written. */
export interface WrittenReport {
  readonly page: string;
  readonly record: StoredReport;
  readonly evaluation?: Evaluation;
}

/**
 * Writes the page of a result, of what its record says. Throws `NotACheckpointError` where there is no record, an `OptionError`
 * where there is nothing to score, and whatever `evaluate` throws.
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

/** Whoever opens the file finds the old page or the new one. */
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
