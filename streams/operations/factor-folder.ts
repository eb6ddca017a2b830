/** Fills a place with factor files, group by group. What is finished stays, so a run that was interrupted goes on. */
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import {
  type FactorContext,
  factorFileName,
  factorLayout,
  factorTensors,
  factorUnit,
} from '../../src/conversion/factor-files.js';
import { compareGroups, type GroupPlan, groupLabel, sourceBytes } from '../../src/conversion/group-plan.js';
import type { Circumstances } from '../../src/conversion/run-identity.js';
import {
  encodeReport,
  type FittedGroupReport,
  fitWarnings,
  peakRssBytes,
  REPORT_FILE,
  type StoredReport,
} from '../../src/conversion/run-report.js';
import { InterruptedError, MobeError, SourceChangedError } from '../../src/errors.js';
import { denseParameters, factorParameters } from '../../src/methods/mobe/problem.js';
import type { Output } from '../../src/output/output.js';
import type { RangeReader } from '../../src/sources/files.js';
import { VERSION } from '../../src/version.js';
import { removeState, type StatePlace, saveInterval } from '../compute/state-file.js';
import type { Factorization } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { writeFactors } from '../stages/write-factors.js';
import { blameSource } from './blame-source.js';
import { openFactors } from './open-factors.js';
import { type OutputPlace, outputName } from './open-output.js';

export interface FactorTarget {
  readonly folder: OutputPlace;
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
    states: StatePlace | undefined,
    write: (factorization: Factorization) => AsyncIterable<FittedGroupReport>,
  ) => Promise<AsyncIterable<FittedGroupReport>>;
  readonly run: RunOptions;
  /** `performance.now()` when the run began. */
  readonly started: number;
}

export async function fillFactorFolder(target: FactorTarget): Promise<RunResult> {
  const { folder, groups, plan, run } = target;
  const { files: reader } = plan.source;
  const opened = await openFactors(folder, target, run);
  if ('done' in opened) return { ...opened.done, already: true };
  const { output } = opened;
  try {
    const finished = (await output.resume?.(groups.map(factorLayout), groups.map(factorUnit), () => {})) ?? new Map();
    const missing = groups.filter((group) => !finished.has(groupLabel(group)));
    const reports = [...finished.values(), ...(missing.length ? await writeGroups(target, output, missing) : [])];
    const report = recordOf(target, reports.sort(compareGroups));
    await output.writeText(REPORT_FILE, `${encodeReport(report)}\n`);
    await output.commit([]);
    return { ...report, already: missing.length === 0 };
  } catch (error) {
    const cause = run.signal?.aborted ? new InterruptedError() : await blameSource(error, reader);
    const kept = await output.abandon(!(cause instanceof SourceChangedError));
    if (kept && cause instanceof MobeError) cause.kept = outputName(folder);
    throw cause;
  } finally {
    await reader.close();
  }
}

async function writeGroups(
  { context, circumstances, plan, produce, run }: FactorTarget,
  output: Output,
  missing: readonly GroupPlan[],
): Promise<FittedGroupReport[]> {
  const bytes = missing.reduce((sum, group) => sum + factorBytes(group), 0);
  const { workspace, elsewhere = false } = output;
  const states =
    workspace === undefined
      ? undefined
      : {
          folder: workspace,
          identity: [context, circumstances, VERSION],
          everyMs: saveInterval(run.saveEvery),
          reservedBytes: elsewhere ? 0 : bytes,
          dispensable: elsewhere,
        };
  for (const group of missing) await output.reserve(factorLayout(group));
  const reports: FittedGroupReport[] = [];
  const reader = plan.source.files;
  const stop = new AbortController();
  const signal = AbortSignal.any([stop.signal, ...(run.signal ? [run.signal] : [])]);
  try {
    const written = await produce(missing, reader, signal, states, async function* (factorization) {
      const report = await writeFactors(output, factorization);
      if (states) await removeState(states.folder, report, run.fileSystem);
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
    throw error;
  }
  return reports;
}

function recordOf(
  { context, plan, engine, groups, started }: FactorTarget,
  reports: FittedGroupReport[],
): StoredReport {
  const warnings = fitWarnings(reports);
  return {
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
}

const factorBytes = (group: GroupPlan): number => factorTensors(group).reduce((sum, { bytes }) => sum + bytes, 0);

/** What a native checkpoint with these factors would hold. */
function sizesAfter({ parametersBefore, bytesBefore }: FactorTarget['plan'], groups: readonly GroupPlan[]) {
  let parametersAfter = parametersBefore;
  let bytesAfter = bytesBefore;
  for (const group of groups) {
    parametersAfter += factorParameters(group.problem) - denseParameters(group.problem);
    bytesAfter += factorBytes(group) - sourceBytes(group);
  }
  return { parametersBefore, parametersAfter, bytesBefore, bytesAfter };
}
