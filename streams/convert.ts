/** What every conversion shares: an output folder filled from merged branches, then its small files, then the commit. */
import { basename, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { encodeIndex } from '../src/checkpoint/layout.js';
import { CONFIG_FILE } from '../src/checkpoint/open-checkpoint.js';
import { OutputFolder } from '../src/checkpoint/output-folder.js';
import { CARD_FILE, listSideFiles } from '../src/checkpoint/side-files.js';
import type { TensorReader } from '../src/checkpoint/tensor-reader.js';
import { modelCard } from '../src/conversion/model-card.js';
import { type ConversionPlan, LOADABLE_LAST, outputBytes } from '../src/conversion/plan.js';
import { type GroupReport, peakRssBytes, REPORT_FILE, type StoredReport } from '../src/conversion/report.js';
import { InterruptedError } from '../src/errors.js';
import { type ConfigChanges, editConfig } from '../src/models/native.js';
import { merge } from './highland.js';
import { passThrough } from './pass-through.js';
import type { RunHooks } from './progress.js';
import type { OutputChunk } from './records.js';
import { writeCheckpoint } from './write-checkpoint.js';

export interface Conversion {
  readonly plan: ConversionPlan;
  readonly out: string;
  /** Files of an earlier result that this one replaces. */
  readonly replaces: readonly string[];
  readonly reader: TensorReader;
  /** The factorised tensors, in any order. Called once the output is reserved; aborting `signal` must end it soon. */
  readonly expertBranch: (onGroup: (report: GroupReport) => void, signal: AbortSignal) => AsyncIterable<OutputChunk>;
  /** What changes in the source's config.json. */
  readonly config: ConfigChanges;
  readonly record: Pick<StoredReport, 'kind' | 'sourceFingerprint' | 'settings'>;
  readonly hooks: RunHooks;
  /** `performance.now()` when the run began. */
  readonly started: number;
}

/** Runs a planned conversion to its end, or leaves nothing behind. */
export async function convert(conversion: Conversion): Promise<StoredReport> {
  const { plan, out, replaces, reader, expertBranch, hooks } = conversion;
  // Aborted by the caller, or by whichever part fails first: a fit must not run on for hours beside a full disk.
  const stop = new AbortController();
  let sinkError: Error | undefined;
  hooks.signal?.addEventListener('abort', () => stop.abort(), { once: true });
  const output = await OutputFolder.create(out, { neededBytes: outputBytes(plan), replaces });
  try {
    for (const shard of plan.layout.shards) await output.reserve(shard);
    const groups: GroupReport[] = [];
    const onGroup = (report: GroupReport): void => {
      groups.push(report);
      hooks.onProgress?.({ kind: 'group', report });
    };
    hooks.onProgress?.({ kind: 'phase', phase: 'convert', groups: plan.groups.length, bytes: plan.layout.tensorBytes });
    const sink = writeCheckpoint(output, (bytes) => hooks.onProgress?.({ kind: 'bytes', bytes }));
    const branches = [passThrough(plan.copies, reader), expertBranch(onGroup, stop.signal)];
    sink.once('error', (error) => {
      sinkError = error; // what ends the pipeline after it is only its echo
      stop.abort();
    });
    await pipeline(merge(branches), sink, { signal: stop.signal });
    groups.sort((a, b) => a.layer - b.layer || (a.projection < b.projection ? -1 : 1));
    const report = await writeSmallFiles(conversion, output, groups);
    await output.commit(LOADABLE_LAST);
    return report;
  } catch (error) {
    stop.abort();
    await output.abandon();
    throw hooks.signal?.aborted ? new InterruptedError() : (sinkError ?? error);
  }
}

async function writeSmallFiles(
  conversion: Conversion,
  output: OutputFolder,
  groups: readonly GroupReport[],
): Promise<StoredReport> {
  const { plan, config, record, started } = conversion;
  const { source, layout, format, parametersBefore, parametersAfter, bytesBefore, bytesAfter } = plan;
  const files = layout.shards.map(({ file }) => file);
  const put = async (file: string, text: string): Promise<void> => {
    await output.writeText(file, text);
    files.push(file);
  };
  for (const { source: file, target } of await listSideFiles(source.folder)) {
    await output.copyFile(join(source.folder, file), target);
    files.push(target);
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
