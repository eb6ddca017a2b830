/** A folder of factor files, filled group by group. What is finished stays, so a run that was interrupted goes on. */
import { mkdir, rename, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import type { RangeReader } from '../src/checkpoint/files.js';
import { checkDisk, checkOutside, listOutput } from '../src/checkpoint/output-folder.js';
import { factorFileName, factorTensors, openFactorFile } from '../src/conversion/factor-files.js';
import { compareGroups, type GroupPlan, sourceBytes } from '../src/conversion/groups.js';
import type { ConversionPlan } from '../src/conversion/plan.js';
import {
  type FittedGroupReport,
  fitWarnings,
  peakRssBytes,
  REPORT_FILE,
  type StoredReport,
} from '../src/conversion/report.js';
import { InterruptedError, OutputNotEmptyError, OutputNotWritableError } from '../src/errors.js';
import { denseParameters, factorParameters } from '../src/factorization/problem.js';
import type { RunOptions, RunResult } from './progress.js';
import type { Factorization } from './records.js';
import { type FactorContext, writeFactorFile } from './write-factors.js';

export interface FactorFolder {
  readonly folder: string;
  /** Folders it must not lie in. */
  readonly inputs: readonly string[];
  /** All that it is to hold. */
  readonly groups: readonly GroupPlan[];
  readonly context: FactorContext;
  readonly plan: Pick<ConversionPlan, 'source' | 'parametersBefore' | 'bytesBefore'>;
  readonly engine: StoredReport['engine'];
  /** Makes the groups that are missing and has each written. Aborting `signal` must end it soon. */
  readonly produce: (
    missing: readonly GroupPlan[],
    reader: RangeReader,
    signal: AbortSignal,
    write: (factorization: Factorization) => AsyncIterable<FittedGroupReport>,
  ) => Promise<AsyncIterable<FittedGroupReport>>;
  readonly run: RunOptions;
  /** `performance.now()` when the run began. */
  readonly started: number;
}

export async function fillFactorFolder(target: FactorFolder): Promise<RunResult> {
  const { folder, inputs, groups, context, plan, engine, started, run } = target;
  await checkOutside(folder, inputs);
  const finished = await finishedGroups(folder, groups, context, run.force ?? false);
  const missing = groups.filter((group) => !finished.has(group));
  const already = missing.length === 0;
  const reports: FittedGroupReport[] = [...finished.values()];
  if (!already) reports.push(...(await writeGroups(target, missing)));
  const warnings = fitWarnings(reports);
  const report: StoredReport = {
    version: 1,
    kind: 'fit',
    ...context,
    ...(engine && { engine }),
    ...sizesAfter(plan, groups),
    peakRssBytes: peakRssBytes(),
    seconds: (performance.now() - started) / 1000,
    groups: reports.sort(compareGroups),
    ...(warnings.length && { warnings }),
    files: [...groups.map(factorFileName), REPORT_FILE].sort(),
  };
  if (!already) await replaceFile(join(folder, REPORT_FILE), `${JSON.stringify(report, null, 2)}\n`);
  return { ...report, already };
}

async function writeGroups(
  { folder, context, plan, produce, run }: FactorFolder,
  missing: readonly GroupPlan[],
): Promise<FittedGroupReport[]> {
  const bytes = missing.reduce((sum, group) => sum + factorBytes(group), 0);
  await checkDisk(folder, bytes);
  await mkdir(folder, { recursive: true }).catch((error: Error) => {
    throw new OutputNotWritableError(folder, error.message);
  });
  const reports: FittedGroupReport[] = [];
  const reader = plan.source.files;
  const stop = new AbortController();
  const signal = AbortSignal.any([stop.signal, ...(run.signal ? [run.signal] : [])]);
  try {
    const written = await produce(missing, reader, signal, async function* (factorization) {
      yield await writeFactorFile(folder, factorization, context);
    });
    run.onProgress?.({ kind: 'phase', phase: 'convert', groups: missing.length, bytes });
    for await (const report of written) {
      reports.push(report);
      run.onProgress?.({ kind: 'group', report });
    }
  } catch (error) {
    stop.abort();
    throw run.signal?.aborted ? new InterruptedError() : error;
  } finally {
    await reader.close();
  }
  return reports;
}

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

/** Whole or not at all, and never through a link to somewhere else that lies in its place. */
async function replaceFile(path: string, text: string): Promise<void> {
  const partial = `${path}.partial`;
  await rm(partial, { force: true });
  await writeFile(partial, text, { flag: 'wx' });
  await rename(partial, path);
}

const factorBytes = (group: GroupPlan): number => factorTensors(group).reduce((sum, { bytes }) => sum + bytes, 0);

/** What a native checkpoint with these factors would hold. */
function sizesAfter({ parametersBefore, bytesBefore }: FactorFolder['plan'], groups: readonly GroupPlan[]) {
  let parametersAfter = parametersBefore;
  let bytesAfter = bytesBefore;
  for (const group of groups) {
    parametersAfter += factorParameters(group.problem) - denseParameters(group.problem);
    bytesAfter += factorBytes(group) - sourceBytes(group);
  }
  return { parametersBefore, parametersAfter, bytesBefore, bytesAfter };
}
