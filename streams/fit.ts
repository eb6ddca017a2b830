import { mkdir, rm, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { fingerprint } from '../src/checkpoint/open-checkpoint.js';
import { checkDisk, checkOutside, listOutput } from '../src/checkpoint/output-folder.js';
import { TensorReader } from '../src/checkpoint/tensor-reader.js';
import { planCompression } from '../src/conversion/compression.js';
import { factorFileName, factorTensors, openFactorFile } from '../src/conversion/factor-files.js';
import { compareGroups, type GroupPlan, sourceBytes } from '../src/conversion/groups.js';
import {
  engineRecord,
  type FittedGroupReport,
  peakRssBytes,
  REPORT_FILE,
  type StoredReport,
} from '../src/conversion/report.js';
import { type CompressOptions, resultSettings } from '../src/conversion/settings.js';
import { InterruptedError, OutputNotEmptyError, OutputNotWritableError } from '../src/errors.js';
import { denseParameters, factorParameters } from '../src/factorization/problem.js';
import { fitGroups, measureGroups } from './expert-branch.js';
import { withEstimate } from './plan.js';
import type { RunOptions, RunResult } from './progress.js';
import { type FactorContext, writeFactors } from './write-factors.js';

/**
 * Fits the experts of `model` and writes one factor file a group into `folder`. Files that are there already from the
 * same source and settings are kept, so an interrupted fit goes on where it stopped.
 */
export async function fitFactors(
  model: string,
  folder: string,
  options: CompressOptions = {},
  { force = false, ...hooks }: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  // Factors have no checkpoint format; "hf" is the one every family can be planned for.
  const plan = await planCompression(model, { ...options, format: 'hf' });
  const { source, groups, settings, memory, engine } = plan;
  await checkOutside(folder, [source.folder]);
  const { format: _, shardSize: __, keepQuantized: ___, ...decisive } = resultSettings(settings);
  const context: FactorContext = { sourceFingerprint: await fingerprint(source), settings: decisive };
  const finished = await finishedGroups(folder, groups, context, force);
  const missing = groups.filter((group) => !finished.has(group));
  const already = missing.length === 0;
  const reports: FittedGroupReport[] = [...finished.values()];
  if (!already) {
    await checkDisk(
      folder,
      missing.reduce((sum, group) => sum + factorBytes(group), 0),
    );
    await mkdir(folder, { recursive: true }).catch((error: Error) => {
      throw new OutputNotWritableError(folder, error.message);
    });
    if (hooks.onProgress) hooks.onProgress({ kind: 'plan', plan: await withEstimate(plan) });
    const reader = new TensorReader();
    try {
      // σ is that of all the groups of a layer and projection, also where only some are still to be fitted.
      const measured = groups.filter((group) =>
        missing.some(({ layer, projection }) => layer === group.layer && projection === group.projection),
      );
      const sigmas = await measureGroups(measured, reader, memory, hooks);
      const bytes = missing.reduce((sum, group) => sum + factorBytes(group), 0);
      hooks.onProgress?.({ kind: 'phase', phase: 'convert', groups: missing.length, bytes });
      const stop = new AbortController();
      const signal = AbortSignal.any([stop.signal, ...(hooks.signal ? [hooks.signal] : [])]);
      const sink = writeFactors(folder, context, (report) => {
        reports.push(report);
        hooks.onProgress?.({ kind: 'group', report });
      });
      const fitted = fitGroups({
        groups: missing,
        reader,
        memory,
        settings,
        sigmas,
        written: 'factors',
        hooks,
        signal,
      });
      sink.once('error', () => stop.abort());
      await pipeline(fitted, sink);
    } catch (error) {
      throw hooks.signal?.aborted ? new InterruptedError() : error;
    } finally {
      await reader.close();
    }
  }
  const report: StoredReport = {
    version: 1,
    kind: 'fit',
    ...context,
    engine: engineRecord(engine),
    ...sizesAfter(plan.parametersBefore, plan.bytesBefore, groups),
    peakRssBytes: peakRssBytes(),
    seconds: (performance.now() - started) / 1000,
    groups: reports.sort(compareGroups),
    files: [...groups.map(factorFileName), REPORT_FILE].sort(),
  };
  if (!already) await writeFile(join(folder, REPORT_FILE), `${JSON.stringify(report, null, 2)}\n`);
  return { ...report, already };
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

const factorBytes = (group: GroupPlan): number => factorTensors(group).reduce((sum, { bytes }) => sum + bytes, 0);

/** What a native checkpoint with these factors would hold. */
function sizesAfter(parametersBefore: number, bytesBefore: number, groups: readonly GroupPlan[]) {
  let parametersAfter = parametersBefore;
  let bytesAfter = bytesBefore;
  for (const group of groups) {
    parametersAfter += factorParameters(group.problem) - denseParameters(group.problem);
    bytesAfter += factorBytes(group) - sourceBytes(group);
  }
  return { parametersBefore, parametersAfter, bytesBefore, bytesAfter };
}
