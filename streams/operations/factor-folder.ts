/** A folder of factor files, filled group by group. What is finished stays, so a run that was interrupted goes on. */
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { PAGE_FILES } from '../../src/checkpoint/side-files.js';
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import { readReport } from '../../src/conversion/existing-output.js';
import { factorFileName, factorTensors, openFactorFile } from '../../src/conversion/factor-files.js';
import { compareGroups, type GroupPlan, sourceBytes } from '../../src/conversion/group-plan.js';
import type { Circumstances } from '../../src/conversion/run-identity.js';
import {
  encodeReport,
  type FittedGroupReport,
  fitWarnings,
  peakRssBytes,
  REPORT_FILE,
  type StoredReport,
} from '../../src/conversion/run-report.js';
import {
  InterruptedError,
  MobeError,
  OutputNotEmptyError,
  OutputNotWritableError,
  SourceChangedError,
} from '../../src/errors.js';
import { type FileSystem, nodeFileSystem, writeSynced } from '../../src/file-system.js';
import { denseParameters, groupParameters } from '../../src/methods/sizes.js';
import { clearPartial } from '../../src/output/commit.js';
import { checkDisk, checkOutside, listOutput, removeIfEmpty } from '../../src/output/folder-checks.js';
import { lockFolder } from '../../src/output/folder-lock.js';
import { PARTIAL_FOLDER } from '../../src/output/journal.js';
import { asWriteError } from '../../src/output/shard-writer.js';
import { STATE_SUFFIX } from '../../src/output/unfinished-run.js';
import type { RangeReader } from '../../src/sources/files.js';
import { VERSION } from '../../src/version.js';
import { removeState, type StatePlace, saveInterval } from '../compute/state-file.js';
import type { Factorization } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { type FactorContext, writeFactorFile } from '../stages/write-factors.js';
import { blameSource } from './blame-source.js';

export interface FactorFolder {
  readonly folder: string;
  /** Folders it must not lie in. */
  readonly inputs: readonly string[];
  /** All that it is to hold. */
  readonly groups: readonly GroupPlan[];
  readonly context: FactorContext;
  /** What decides the course of a fit beside the settings. */
  readonly circumstances: Circumstances;
  readonly plan: Pick<ConversionPlan, 'source' | 'parametersBefore' | 'bytesBefore'>;
  readonly engine: StoredReport['engine'];
  /** Makes the groups that are missing and has each written. Aborting `signal` must end it soon. */
  readonly produce: (
    missing: readonly GroupPlan[],
    reader: RangeReader,
    signal: AbortSignal,
    states: StatePlace,
    write: (factorization: Factorization) => AsyncIterable<FittedGroupReport>,
  ) => Promise<AsyncIterable<FittedGroupReport>>;
  readonly run: RunOptions;
  /** `performance.now()` when the run began. */
  readonly started: number;
}

export async function fillFactorFolder(target: FactorFolder): Promise<RunResult> {
  const { folder, inputs, run } = target;
  await checkOutside(folder, inputs);
  await listOutput(folder); // it may be a file
  const partial = join(folder, PARTIAL_FOLDER);
  const fs = run.fileSystem ?? nodeFileSystem;
  const lock = await lockFolder(partial, run.force ?? false, fs).catch((error: Error) => {
    throw error instanceof MobeError ? error : new OutputNotWritableError(folder, error.message);
  });
  try {
    const result = await fillLocked(target, partial);
    await clearPartial(folder, fs);
    return result;
  } finally {
    await lock.release();
    await removeIfEmpty(folder);
  }
}

async function fillLocked(target: FactorFolder, partial: string): Promise<RunResult> {
  const { folder, groups, context, plan, engine, started, run } = target;
  const finished = await finishedGroups(folder, groups, context, run.force ?? false);
  const missing = groups.filter((group) => !finished.has(group));
  const already = missing.length === 0;
  const reports: FittedGroupReport[] = [...finished.values()];
  if (!already) reports.push(...(await writeGroups(target, missing, partial)));
  reports.sort(compareGroups);
  const warnings = fitWarnings(reports);
  const report: StoredReport = {
    version: 1,
    kind: 'fit',
    ...context,
    ...(engine && { engine }),
    ...sizesAfter(plan, groups),
    peakRssBytes: peakRssBytes(),
    seconds: (performance.now() - started) / 1000,
    groups: reports,
    ...(warnings.length && { warnings }),
    files: [...groups.map(factorFileName), REPORT_FILE].sort(),
  };
  // A run that was killed after its last group has left no record.
  if (!already || !(await readReport(folder))) await writeRecord(folder, report, run.fileSystem ?? nodeFileSystem);
  return { ...report, already };
}

/** Replaces the record at once: half of one would be no record. */
async function writeRecord(folder: string, report: StoredReport, fs: FileSystem): Promise<void> {
  const path = join(folder, REPORT_FILE);
  const temporary = join(folder, PARTIAL_FOLDER, REPORT_FILE);
  try {
    await writeSynced(fs, temporary, [new TextEncoder().encode(`${encodeReport(report)}\n`)]);
    await fs.rename(temporary, path);
  } catch (error) {
    throw asWriteError(path, error);
  }
}

async function writeGroups(
  { folder, context, circumstances, plan, produce, run }: FactorFolder,
  missing: readonly GroupPlan[],
  partial: string,
): Promise<FittedGroupReport[]> {
  const bytes = missing.reduce((sum, group) => sum + factorBytes(group), 0);
  await checkDisk(folder, bytes);
  const states: StatePlace = {
    folder: partial,
    identity: [context, circumstances, VERSION],
    everyMs: saveInterval(run.saveEvery),
    reservedBytes: bytes,
    dispensable: false,
  };
  const reports: FittedGroupReport[] = [];
  const reader = plan.source.files;
  const stop = new AbortController();
  const signal = AbortSignal.any([stop.signal, ...(run.signal ? [run.signal] : [])]);
  try {
    const written = await produce(missing, reader, signal, states, async function* (factorization) {
      const report = await writeFactorFile(folder, factorization, context, run.fileSystem);
      await removeState(partial, report, run.fileSystem);
      yield report;
    });
    run.onProgress?.({ kind: 'phase', phase: 'convert', groups: missing.length, bytes });
    for await (const report of written) {
      reports.push(report);
      run.onProgress?.({ kind: 'group', report });
    }
    await reader.checkUnchanged();
  } catch (error) {
    stop.abort();
    const cause = run.signal?.aborted ? new InterruptedError() : await blameSource(error, reader);
    if (cause instanceof SourceChangedError) {
      for (const report of reports) await rm(join(folder, factorFileName(report)));
      await clearPartial(folder, nodeFileSystem);
    } else if (cause instanceof MobeError && (await holdsWork(folder))) cause.kept = folder;
    throw cause;
  } finally {
    await reader.close();
  }
  return reports;
}

const holdsWork = async (folder: string): Promise<boolean> =>
  [...((await listOutput(folder)) ?? []), ...(await nodeFileSystem.readdir(join(folder, PARTIAL_FOLDER)))].some(
    (name) => name.endsWith('.safetensors') || name.endsWith(STATE_SUFFIX),
  );

/** Groups whose factor file is there, made from the same source with the same settings. */
async function finishedGroups(
  folder: string,
  groups: readonly GroupPlan[],
  { sourceFingerprint, settings }: FactorContext,
  force: boolean,
): Promise<Map<GroupPlan, FittedGroupReport>> {
  const finished = new Map<GroupPlan, FittedGroupReport>();
  const held = (await listOutput(folder)) ?? [];
  const own = new Set([
    REPORT_FILE,
    ...PAGE_FILES,
    `${REPORT_FILE}.partial`,
    ...groups.flatMap((group) => [factorFileName(group), `${factorFileName(group)}.partial`]),
  ]);
  const foreign = held.filter((name) => !own.has(name));
  if (foreign.length)
    throw new OutputNotEmptyError(
      folder,
      `holds files of another run or none of mobe's (${foreign.slice(0, 3).join(', ')})`,
    );
  if (force) {
    for (const name of held) await rm(join(folder, name));
    await clearPartial(folder, nodeFileSystem);
    return finished;
  }
  for (const group of groups) {
    if (!held.includes(factorFileName(group))) continue;
    const { metadata } = await openFactorFile(join(folder, factorFileName(group)));
    const same =
      metadata.sourceFingerprint === sourceFingerprint &&
      JSON.stringify(metadata.settings) === JSON.stringify(settings);
    if (!same)
      throw new OutputNotEmptyError(folder, `holds ${factorFileName(group)} from another source or other settings`);
    finished.set(group, { ...metadata.report, seconds: 0 });
  }
  return finished;
}

const factorBytes = (group: GroupPlan): number => factorTensors(group).reduce((sum, { bytes }) => sum + bytes, 0);

/** What a native checkpoint with these factors would hold. */
function sizesAfter({ parametersBefore, bytesBefore }: FactorFolder['plan'], groups: readonly GroupPlan[]) {
  let parametersAfter = parametersBefore;
  let bytesAfter = bytesBefore;
  for (const group of groups) {
    parametersAfter += groupParameters(group) - denseParameters(group.problem);
    bytesAfter += factorBytes(group) - sourceBytes(group);
  }
  return { parametersBefore, parametersAfter, bytesBefore, bytesAfter };
}
