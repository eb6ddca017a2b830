/**
 * Runs a planned conversion as one transaction: the pipeline fills an output, then its small files are written, then it is
 * committed.
 */
import { listSideFiles } from '../../src/checkpoint/side-files.js';
import { type ConversionPlan, heldBytes, LOADABLE_LAST, outputBytes } from '../../src/conversion/conversion-plan.js';
import { groupUnits } from '../../src/conversion/group-places.js';
import { compareGroups, type GroupPlan, groupLabel } from '../../src/conversion/group-plan.js';
import { type Circumstances, runIdentity } from '../../src/conversion/run-identity.js';
import type { GroupReport } from '../../src/conversion/run-report.js';
import {
  DamagedDownloadError,
  DegenerateGroupError,
  DivergedError,
  InputError,
  InterruptedError,
  MobeError,
  NonFiniteWeightError,
  OverflowError,
  PeerRefusalError,
  SourceChangedError,
} from '../../src/errors.js';
import type { Output } from '../../src/output/output.js';
import type { FinishedUnits, RunIdentity, Unit } from '../../src/output/unfinished-run.js';
import type { RangeReader } from '../../src/sources/files.js';
import { removeState, type StatePlace, saveInterval } from '../compute/state-file.js';
import { hashOutput } from '../flow/hash-output.js';
import { type WriteOptions, writeAll } from '../pipeline.js';
import type { OutputRecord } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { blameSource } from './blame-source.js';
import { openFactors } from './open-factors.js';
import { type OutputPlace, openOutput, outputName } from './open-output.js';
import { type Recorded, writeSmallFiles } from './small-files.js';
import { conversionUnits, copyId, unitId } from './units.js';

/** The input of the branch that produces the factorised tensors. */
export interface BranchContext {
  readonly reader: RangeReader;
  /** The groups to write. Groups that an interrupted run has finished are not among them. */
  readonly missing: readonly GroupPlan[];
  /** The folder in which fits save their state. Undefined if they save none. */
  readonly states: StatePlace | undefined;
  /** When it is aborted, the branch must end soon. */
  readonly signal: AbortSignal;
}

/** A planned conversion with the branch that carries it out. */
export interface Conversion extends Recorded {
  readonly out: OutputPlace;
  /**
   * The plan of which `plan` is a part, if other processes write other parts into the same folder of factor files. A part writes no
   * record.
   */
  readonly partOf?: ConversionPlan | undefined;
  /** Folders in which the output must not lie. */
  readonly inputs: readonly string[];
  /** Called before the work, when it is known that there is work and enough disk space. */
  readonly onStart?: () => Promise<void>;
  /** Yields the chunks of the factorised tensors in any order, and a report after the chunks of each group. */
  readonly experts: (context: BranchContext) => AsyncIterable<OutputRecord>;
  /** Called after each group that is finished, so that an interruption keeps it. */
  readonly onFinished?: (group: GroupReport) => Promise<void>;
  /** Facts beside the settings that decide the output's bytes. */
  readonly circumstances?: Circumstances;
  readonly run: RunOptions;
}

/**
 * Runs a planned conversion, and resumes an interrupted run of the same identity. Does nothing if the same result is already
 * there. Throws a `MobeError`, whose `kept` says whether finished work was kept.
 */
export async function convert(conversion: Conversion): Promise<RunResult> {
  const { out, inputs, record, run, plan, partOf, circumstances = {} } = conversion;
  const { files: reader } = plan.source;
  try {
    const device = record.engine?.device;
    const identity = await runIdentity(record, partOf ?? plan, { ...circumstances, device });
    const opened =
      plan.format === 'factors'
        ? await openFactors(
            out,
            { kind: record.kind, groups: plan.groups, context: record, inputs, shared: partOf !== undefined },
            run,
          )
        : await openOutput(
            out,
            { wanted: record, neededBytes: outputBytes(plan), heldBytes: heldBytes(plan), inputs, identity },
            run,
          );
    if ('done' in opened) return { ...opened.done, already: true, notes: plan.source.notes };
    return await fill(conversion, opened.output, identity);
  } finally {
    await reader.close();
  }
}

async function fill(conversion: Conversion, place: Output, { identity }: RunIdentity): Promise<RunResult> {
  const { plan, run, out, companions } = conversion;
  const hashed = companions && hashOutput(place, run.clocks);
  const output = hashed ?? place;
  // Aborted by the caller, or by the first part that fails: a fit must not go on for hours when the disk is full.
  const stop = new AbortController();
  const signal = AbortSignal.any([stop.signal, ...(run.signal ? [run.signal] : [])]);
  let sinkError: Error | undefined;
  const onSinkError = (error: Error): void => {
    sinkError ??= error; // the error that then ends the pipeline is only a consequence
    stop.abort();
  };
  const groups: GroupReport[] = [];
  // The process may be killed before a long step ends, so finished work goes to disk at once.
  run.signal?.addEventListener('abort', () => void output.sync?.().catch(() => {}), { once: true });
  try {
    output.onLost?.(onSinkError);
    if (companions) await listSideFiles(plan.source); // throws now for bad side files, not after hours
    const states = statesIn(output, conversion, identity);
    const nothing = await write(conversion, output, states, { signal, onSinkError, groups });
    await plan.source.files.checkUnchanged();
    const report = await writeSmallFiles(conversion, output, hashed, groups.sort(compareGroups));
    await output.commit(LOADABLE_LAST);
    return { ...report, already: nothing, notes: plan.source.notes };
  } catch (error) {
    stop.abort();
    const cause = run.signal?.aborted
      ? new InterruptedError()
      : await blameSource(sinkError ?? error, plan.source.files);
    const kept = await output.abandon(isWorthKeeping(cause, plan, groups));
    if (kept && cause instanceof MobeError) cause.kept = outputName(out);
    throw cause;
  }
}

/** Whether a later run can use the work that was finished before an error. */
function isWorthKeeping(error: unknown, { format }: ConversionPlan, groups: readonly GroupReport[]): boolean {
  // The work may mix old and new content, or be made from damaged bytes.
  if (error instanceof SourceChangedError || error instanceof DamagedDownloadError) return false;
  if (format === 'factors') return true; // each file is complete in itself
  // Some weights of the source cannot be fitted. The other groups stay useful once these weights are repaired.
  if (error instanceof NonFiniteWeightError || error instanceof DegenerateGroupError) return groups.length > 0;
  if (error instanceof PeerRefusalError) return true; // for example, a machine was restarted with another token
  // The same command would fail again.
  return ![InputError, OverflowError, DivergedError].some((kind) => error instanceof kind);
}

interface Writing extends Pick<WriteOptions, 'onSinkError'> {
  readonly signal: AbortSignal;
  /** Receives the reports of all groups, including those that an interrupted run has finished. */
  readonly groups: GroupReport[];
}

/**
 * Writes all tensors that are missing.
 * @returns whether nothing had to be done
 */
async function write(
  { plan, onStart, experts, onFinished, run }: Conversion,
  output: Output,
  states: StatePlace | undefined,
  { signal, onSinkError, groups }: Writing,
): Promise<boolean> {
  const { files: reader } = plan.source;
  const units = new Map(conversionUnits(plan).map((unit) => [unit.id, unit] as const));
  const finished = await resume(plan, output, [...units.values()], run);
  const together = groupUnits(plan.groups, plan);
  const unitOf = new Map(together.flatMap((unit) => unit.map((group) => [groupLabel(group), unit] as const)));
  const isFinished = (group: GroupPlan): boolean => finished.has(unitId(unitOf.get(groupLabel(group)) ?? [group]));
  const missing = plan.groups.filter((group) => !isFinished(group));
  const copies = plan.copies.filter((copy) => !finished.has(copyId(copy)));
  for (const unit of together)
    groups.push(...[(finished.get(unitId(unit)) ?? []) as GroupReport | GroupReport[]].flat());
  if (plan.format === 'factors' && missing.length === 0) return true;
  await onStart?.();
  for (const shard of plan.layout.shards) await output.reserve(shard);
  const bytes = [...units.values()]
    .filter(({ id }) => !finished.has(id))
    .reduce((sum, { parts }) => sum + parts.reduce((size, part) => size + part.bytes, 0), 0);
  run.onProgress?.({ kind: 'phase', phase: 'convert', groups: missing.length, bytes });
  const reports = new Map<readonly GroupPlan[], GroupReport[]>();
  await writeAll({
    copies,
    groups: missing,
    reader,
    experts: experts({ reader, missing, states, signal }),
    output,
    signal,
    clocks: run.clocks,
    onSinkError,
    onBytes: (bytes) => run.onProgress?.({ kind: 'bytes', bytes }),
    async onFinished(report) {
      const unit = unitOf.get(groupLabel(report)) ?? []; // a native export leaves out whole layers: nothing of them is written
      const told = [...(reports.get(unit) ?? []), report];
      reports.set(unit, told);
      if (told.length < unit.length) return;
      reports.delete(unit);
      groups.push(...told);
      const written = units.get(unitId(unit));
      if (written) await output.finish?.(written, told.length > 1 ? told : report);
      for (const it of told) {
        run.onProgress?.({ kind: 'group', report: it }); // only now, so that an interruption keeps every group that was reported
        if (written && states) await removeState(states.folder, it, run.fileSystem);
        await onFinished?.(it);
      }
    },
  });
  return false;
}

function statesIn(
  { workspace, elsewhere = false, writer }: Output,
  { plan, run }: Conversion,
  identity: unknown,
): StatePlace | undefined {
  if (workspace === undefined) return undefined;
  const reservedBytes = elsewhere ? 0 : outputBytes(plan);
  return {
    ...{ folder: workspace, identity, everyMs: saveInterval(run.saveEvery) },
    ...{ reservedBytes, dispensable: elsewhere || writer !== undefined },
    newSuffix: writer === undefined ? '.new' : `.${writer}.new`,
  };
}

/** Returns the units that an interrupted run has finished. */
async function resume(
  plan: ConversionPlan,
  output: Output,
  units: readonly Unit[],
  { onProgress, signal }: RunOptions,
): Promise<FinishedUnits> {
  let told = false;
  const finished = await output.resume?.(plan.layout.shards, units, (bytes) => {
    if (signal?.aborted) throw new InterruptedError();
    if (!told) onProgress?.({ kind: 'phase', phase: 'resume', groups: 0, bytes: outputBytes(plan) });
    told = true;
    onProgress?.({ kind: 'bytes', bytes });
  });
  return finished ?? new Map();
}
