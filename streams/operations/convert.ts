/** What every conversion shares: an output folder filled from merged branches, then its small files, then the commit. */
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { CONFIG_FILE } from '../../src/checkpoint/open-checkpoint.js';
import { CARD_FILE, listSideFiles } from '../../src/checkpoint/side-files.js';
import { type ConversionPlan, LOADABLE_LAST, outputBytes } from '../../src/conversion/conversion-plan.js';
import { compareGroups, type GroupPlan, groupLabel } from '../../src/conversion/group-plan.js';
import { PASS_THROUGH_BLOCKS } from '../../src/conversion/memory-plan.js';
import { modelCard } from '../../src/conversion/model-card.js';
import { type Circumstances, runIdentity } from '../../src/conversion/run-identity.js';
import {
  encodeReport,
  fitWarnings,
  type GroupReport,
  peakRssBytes,
  REPORT_FILE,
  type StoredReport,
} from '../../src/conversion/run-report.js';
import {
  DivergedError,
  InputError,
  InterruptedError,
  MobeError,
  OverflowError,
  PeerRefusalError,
  SourceChangedError,
} from '../../src/errors.js';
import type { ModellingFile } from '../../src/models/modelling-files.js';
import { type ConfigChanges, editConfig } from '../../src/models/native.js';
import { encodeIndex } from '../../src/output/layout.js';
import { encodeManifest, MANIFEST_FILE } from '../../src/output/manifest.js';
import type { Output } from '../../src/output/output-folder.js';
import { seal } from '../../src/output/seal.js';
import type { FinishedUnits, RunIdentity, Unit } from '../../src/output/unfinished-run.js';
import { type ByteRange, isRemote, type RangeReader, READ_BYTES } from '../../src/sources/files.js';
import { removeState, type StatePlace, saveInterval } from '../compute/state-file.js';
import { BufferPool } from '../flow/buffer-pool.js';
import { type HashedOutput, hashOutput } from '../flow/hash-output.js';
import { merge } from '../flow/highland.js';
import type { OutputChunk } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { checkDecoded } from '../stages/check-decoded.js';
import { passThrough } from '../stages/pass-through.js';
import { writeCheckpoint } from '../stages/write-checkpoint.js';
import { blameSource } from './blame-source.js';
import { openOutput } from './open-output.js';
import { conversionUnits, copyId } from './units.js';

export interface BranchContext {
  readonly reader: RangeReader;
  /** The groups to write; those that an interrupted run has finished are not among them. */
  readonly missing: readonly GroupPlan[];
  /** Where a fit can save how far it is. */
  readonly states: StatePlace | undefined;
  readonly onGroup: (report: GroupReport) => void;
  /** Aborting it must end the branch soon. */
  readonly signal: AbortSignal;
}

export interface Conversion {
  readonly plan: ConversionPlan;
  readonly out: string;
  /** Folders the output must not lie in. */
  readonly inputs: readonly string[];
  /** Done first, once it is clear that there is something to do and room for it; no new shard has been created yet. */
  readonly before?: (reader: RangeReader, missing: readonly GroupPlan[]) => Promise<void>;
  /** The factorised tensors, in any order. */
  readonly expertBranch: (context: BranchContext) => AsyncIterable<OutputChunk>;
  /** What changes in the source's config.json. */
  readonly config: ConfigChanges;
  /** Modelling files of ours: of a native output to be added, of an expansion's source to be left behind. */
  readonly modelling?: { readonly add?: readonly ModellingFile[]; readonly leave?: readonly ModellingFile[] };
  /** Side files that the result has otherwise, by their place in it: their text, or undefined where they are left out. */
  readonly edited?: ReadonlyMap<string, string | undefined>;
  readonly record: Pick<StoredReport, 'kind' | 'sourceFingerprint' | 'engine' | 'settings'>;
  /** What decides the bytes beside the settings. */
  readonly circumstances?: Circumstances;
  readonly run: RunOptions;
  /** `performance.now()` when the run began. */
  readonly started: number;
}

/** Runs a planned conversion to its end, from where an interrupted one stopped; or finds that its very result is there already. */
export async function convert(conversion: Conversion): Promise<RunResult> {
  const { out, inputs, record, run, plan, circumstances = {} } = conversion;
  const { files: reader } = plan.source;
  try {
    const device = record.engine?.device;
    const identity = await runIdentity(record, plan, { ...circumstances, device });
    const opened = await openOutput(out, { wanted: record, neededBytes: outputBytes(plan), inputs, identity }, run);
    if ('done' in opened) return { ...opened.done, already: true };
    return { ...(await fill(conversion, opened.output, identity)), already: false };
  } finally {
    await reader.close();
  }
}

/** After these the same command would fail again, or must not trust what was read before. */
const isFinal = (error: unknown): boolean =>
  [InputError, OverflowError, DivergedError, SourceChangedError].some((kind) => error instanceof kind) &&
  !(error instanceof PeerRefusalError); // of a machine that came back with another token, say

async function fill(conversion: Conversion, place: Output, { identity }: RunIdentity): Promise<StoredReport> {
  const { plan, run, out } = conversion;
  const output = hashOutput(place, run.clocks);
  // Aborted by the caller, or by whichever part fails first: a fit must not run on for hours beside a full disk.
  const stop = new AbortController();
  const signal = AbortSignal.any([stop.signal, ...(run.signal ? [run.signal] : [])]);
  let sinkError: Error | undefined;
  const onSinkError = (error: Error): void => {
    sinkError ??= error; // what ends the pipeline after it is only its echo
    stop.abort();
  };
  // The process may have to end before a long step does: better on disk by then.
  run.signal?.addEventListener('abort', () => void output.sync?.().catch(() => {}), { once: true });
  try {
    output.onLost?.(onSinkError);
    await listSideFiles(plan.source); // refused now, not after hours
    const groups = await write(conversion, output, statesIn(output, conversion, identity), signal, onSinkError);
    const report = await writeSmallFiles(conversion, output, groups);
    await plan.source.files.checkUnchanged();
    await output.commit(LOADABLE_LAST);
    return report;
  } catch (error) {
    stop.abort();
    const cause = run.signal?.aborted
      ? new InterruptedError()
      : await blameSource(sinkError ?? error, plan.source.files);
    const kept = await output.abandon(!isFinal(cause));
    if (kept && cause instanceof MobeError) cause.kept = out;
    throw cause;
  }
}

/** All tensors that are not there yet. @returns the reports of all groups, also of those that are */
async function write(
  { plan, before, expertBranch, run }: Conversion,
  output: Output,
  states: StatePlace | undefined,
  signal: AbortSignal,
  onSinkError: (error: Error) => void,
): Promise<GroupReport[]> {
  const { files: reader } = plan.source;
  const units = new Map(conversionUnits(plan).map((unit) => [unit.id, unit] as const));
  const finished = await resume(plan, output, [...units.values()], run);
  const missing = plan.groups.filter((group) => !finished.has(groupLabel(group)));
  const copies = plan.copies.filter((copy) => !finished.has(copyId(copy)));
  await before?.(reader, missing);
  await checkDecoded(copies, reader, run);
  for (const shard of plan.layout.shards) await output.reserve(shard);
  const groups = plan.groups.flatMap((group) => (finished.get(groupLabel(group)) as GroupReport | undefined) ?? []);
  const notes: Array<Promise<void>> = [];
  const finish = async (report: GroupReport): Promise<void> => {
    const unit = units.get(groupLabel(report));
    if (!unit) return; // of a layer that a native export leaves out whole: told, but nothing of it is written
    await output.finish?.(unit, report);
    if (states) await removeState(states.folder, report, run.fileSystem);
  };
  const onGroup = (report: GroupReport): void => {
    groups.push(report);
    run.onProgress?.({ kind: 'group', report });
    const noted = finish(report);
    noted.catch(onSinkError);
    notes.push(noted);
  };
  const bytes = [...units.values()]
    .filter(({ id }) => !finished.has(id))
    .reduce((sum, { parts }) => sum + parts.reduce((size, part) => size + part.bytes, 0), 0);
  run.onProgress?.({ kind: 'phase', phase: 'convert', groups: missing.length, bytes });
  const { clocks } = run;
  const sink = writeCheckpoint(output, (bytes) => run.onProgress?.({ kind: 'bytes', bytes }));
  sink.once('error', onSinkError);
  const pool = output.retains ? undefined : new BufferPool(PASS_THROUGH_BLOCKS, READ_BYTES, clocks?.held);
  const copied = passThrough(copies, reader, pool);
  const branches = [
    clocks ? clocks.source('read', copied, ({ data }) => data.byteLength) : copied,
    expertBranch({ reader, missing, states, onGroup, signal }),
  ];
  await pipeline(merge(branches), sink, { signal });
  await Promise.all(notes);
  return groups.sort(compareGroups);
}

function statesIn({ workspace }: Output, { plan, out, run }: Conversion, identity: unknown): StatePlace | undefined {
  if (workspace === undefined) return undefined;
  const elsewhere = isRemote(out);
  const reservedBytes = elsewhere ? 0 : outputBytes(plan);
  return {
    ...{ folder: workspace, identity, everyMs: saveInterval(run.saveEvery) },
    ...{ reservedBytes, dispensable: elsewhere },
  };
}

/** What an interrupted run has finished. */
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

async function writeSmallFiles(
  conversion: Conversion,
  output: HashedOutput,
  groups: readonly GroupReport[],
): Promise<StoredReport> {
  const { plan, config, modelling, edited, record, started } = conversion;
  const { source, layout, format, parametersBefore, parametersAfter, bytesBefore, bytesAfter } = plan;
  const added = modelling?.add ?? [];
  const ours = new Set([...added, ...(modelling?.leave ?? [])].map(({ target }) => target));
  for (const { source: file, target, bytes } of await listSideFiles(source)) {
    if (ours.has(target)) continue;
    const text = edited?.get(target);
    if (text !== undefined) await output.writeText(target, text);
    if (edited?.has(target)) continue;
    await output.writeFile(target, bytes, wholeFile({ file, start: 0, end: bytes }, source.files));
  }
  for (const { source: file, target } of added) {
    await output.writeText(target, await readFile(file, 'utf8'));
  }
  const index = encodeIndex(layout);
  if (index) await output.writeText(index.file, index.text);
  await output.writeText(CONFIG_FILE, editConfig(source.configText, config));
  const sizes = { parametersBefore, parametersAfter, bytesBefore, bytesAfter };
  await output.writeText(
    CARD_FILE,
    modelCard({ source: basename(source.folder), format, ...sizes, settings: record.settings, groups }),
  );
  const warnings = fitWarnings(groups);
  const report: StoredReport = {
    version: 1,
    ...record,
    ...sizes,
    peakRssBytes: peakRssBytes(),
    seconds: (performance.now() - started) / 1000,
    groups,
    ...(warnings.length && { warnings }),
    files: [...output.written.keys(), MANIFEST_FILE, REPORT_FILE].sort(),
  };
  // The record has timings, and a seal of its own; the manifest of all else is the same whenever the same is written.
  await output.writeText(MANIFEST_FILE, encodeManifest(output.written));
  await output.writeText(REPORT_FILE, seal(encodeReport(report)));
  return report;
}

/** A file's bytes, some at a time. */
async function* wholeFile({ file, start, end }: ByteRange, reader: RangeReader): AsyncGenerator<Uint8Array> {
  for (let from = start; from < end; from += READ_BYTES) {
    yield reader.readRange({ file, start: from, end: Math.min(end, from + READ_BYTES) });
  }
}
