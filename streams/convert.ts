/** What every conversion shares: an output folder filled from merged branches, then its small files, then the commit. */
import { readFile } from 'node:fs/promises';
import { basename } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { type ByteRange, type RangeReader, READ_BYTES } from '../src/checkpoint/files.js';
import { encodeIndex } from '../src/checkpoint/layout.js';
import { CONFIG_FILE } from '../src/checkpoint/open-checkpoint.js';
import type { Output } from '../src/checkpoint/output-folder.js';
import { CARD_FILE, listSideFiles } from '../src/checkpoint/side-files.js';
import { compareGroups } from '../src/conversion/groups.js';
import { PASS_THROUGH_BLOCKS } from '../src/conversion/memory.js';
import { modelCard } from '../src/conversion/model-card.js';
import { type ConversionPlan, LOADABLE_LAST, outputBytes } from '../src/conversion/plan.js';
import { type GroupReport, peakRssBytes, REPORT_FILE, type StoredReport } from '../src/conversion/report.js';
import { InterruptedError } from '../src/errors.js';
import type { ModellingFile } from '../src/models/modelling-files.js';
import { type ConfigChanges, editConfig } from '../src/models/native.js';
import { BufferPool } from './buffer-pool.js';
import { merge } from './highland.js';
import { openOutput } from './open-output.js';
import { passThrough } from './pass-through.js';
import type { RunOptions, RunResult } from './progress.js';
import type { OutputChunk } from './records.js';
import type { StageClocks } from './stage-clock.js';
import { writeCheckpoint } from './write-checkpoint.js';

export interface BranchContext {
  readonly reader: RangeReader;
  readonly onGroup: (report: GroupReport) => void;
  /** Aborting it must end the branch soon. */
  readonly signal: AbortSignal;
}

export interface Conversion {
  readonly plan: ConversionPlan;
  readonly out: string;
  /** Folders the output must not lie in. */
  readonly inputs: readonly string[];
  /** Done first, once it is clear that there is something to do and room for it; no shard has been created yet. */
  readonly before?: (reader: RangeReader) => Promise<void>;
  /** The factorised tensors, in any order. */
  readonly expertBranch: (context: BranchContext) => AsyncIterable<OutputChunk>;
  /** What changes in the source's config.json. */
  readonly config: ConfigChanges;
  /** Modelling files of ours: of a native output to be added, of an expansion's source to be left behind. */
  readonly modelling?: { readonly add?: readonly ModellingFile[]; readonly leave?: readonly ModellingFile[] };
  readonly record: Pick<StoredReport, 'kind' | 'sourceFingerprint' | 'engine' | 'settings'>;
  readonly run: RunOptions;
  /** `performance.now()` when the run began. */
  readonly started: number;
}

/** Runs a planned conversion to its end, or leaves nothing behind; or finds that its very result is there already. */
export async function convert(conversion: Conversion): Promise<RunResult> {
  const { out, inputs, record, run } = conversion;
  const { plan } = conversion;
  const reader = plan.source.files;
  try {
    const opened = await openOutput(out, { wanted: record, neededBytes: outputBytes(plan), inputs }, run);
    if ('done' in opened) return { ...opened.done, already: true };
    return { ...(await fill(conversion, opened.output, reader)), already: false };
  } catch (error) {
    throw run.signal?.aborted ? new InterruptedError() : error;
  } finally {
    await reader.close();
  }
}

async function fill(conversion: Conversion, output: Output, reader: RangeReader): Promise<StoredReport> {
  const { plan, before, expertBranch, run } = conversion;
  // Aborted by the caller, or by whichever part fails first: a fit must not run on for hours beside a full disk.
  const stop = new AbortController();
  const signal = AbortSignal.any([stop.signal, ...(run.signal ? [run.signal] : [])]);
  let sinkError: Error | undefined;
  try {
    output.onLost?.((error) => {
      sinkError = error;
      stop.abort();
    });
    await before?.(reader);
    for (const shard of plan.layout.shards) await output.reserve(shard);
    const groups: GroupReport[] = [];
    const onGroup = (report: GroupReport): void => {
      groups.push(report);
      run.onProgress?.({ kind: 'group', report });
    };
    run.onProgress?.({ kind: 'phase', phase: 'convert', groups: plan.groups.length, bytes: plan.layout.tensorBytes });
    const { clocks } = run;
    const target = clocks ? timedOutput(output, clocks) : output;
    const sink = writeCheckpoint(target, (bytes) => run.onProgress?.({ kind: 'bytes', bytes }));
    sink.once('error', (error) => {
      sinkError ??= error; // what ends the pipeline after it is only its echo
      stop.abort();
    });
    const pool = output.retains ? undefined : new BufferPool(PASS_THROUGH_BLOCKS, READ_BYTES, clocks?.held);
    const copies = passThrough(plan.copies, reader, pool);
    const branches = [
      clocks ? clocks.source('read', copies, ({ data }) => data.byteLength) : copies,
      expertBranch({ reader, onGroup, signal }),
    ];
    await pipeline(merge(branches), sink, { signal });
    groups.sort(compareGroups);
    const report = await writeSmallFiles(conversion, output, groups);
    await target.commit(LOADABLE_LAST);
    return report;
  } catch (error) {
    stop.abort();
    await output.abandon();
    throw sinkError ?? error;
  }
}

/** Bringing it to the disk is part of writing it. */
const timedOutput = (output: Output, clocks: StageClocks): Pick<Output, 'write' | 'commit' | 'retains'> => ({
  retains: output.retains ?? false,
  write: (tensor, offset, data) => clocks.work('write', data.byteLength, () => output.write(tensor, offset, data)),
  commit: (last) => clocks.work('write', 0, () => output.commit(last)),
});

async function writeSmallFiles(
  conversion: Conversion,
  output: Output,
  groups: readonly GroupReport[],
): Promise<StoredReport> {
  const { plan, config, modelling, record, started } = conversion;
  const { source, layout, format, parametersBefore, parametersAfter, bytesBefore, bytesAfter } = plan;
  const files = layout.shards.map(({ file }) => file);
  const put = async (file: string, text: string): Promise<void> => {
    await output.writeText(file, text);
    files.push(file);
  };
  const added = modelling?.add ?? [];
  const ours = new Set([...added, ...(modelling?.leave ?? [])].map(({ target }) => target));
  for (const { source: file, target, bytes } of await listSideFiles(source)) {
    if (ours.has(target)) continue;
    await output.writeFile(target, bytes, wholeFile({ file, start: 0, end: bytes }, source.files));
    files.push(target);
  }
  for (const { source: file, target } of added) {
    await put(target, await readFile(file, 'utf8'));
  }
  const index = encodeIndex(layout);
  if (index) await put(index.file, index.text);
  await put(CONFIG_FILE, editConfig(source.configText, config));
  const sizes = { parametersBefore, parametersAfter, bytesBefore, bytesAfter };
  await put(
    CARD_FILE,
    modelCard({ source: basename(source.folder), format, ...sizes, settings: record.settings, groups }),
  );
  const report: StoredReport = {
    version: 1,
    ...record,
    ...sizes,
    peakRssBytes: peakRssBytes(),
    seconds: (performance.now() - started) / 1000,
    groups,
    files: [...files, REPORT_FILE].sort(),
  };
  await output.writeText(REPORT_FILE, `${JSON.stringify(report, null, 2)}\n`);
  return report;
}

/** A file's bytes, some at a time. */
async function* wholeFile({ file, start, end }: ByteRange, reader: RangeReader): AsyncGenerator<Uint8Array> {
  for (let from = start; from < end; from += READ_BYTES) {
    yield reader.readRange({ file, start: from, end: Math.min(end, from + READ_BYTES) });
  }
}
