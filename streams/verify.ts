import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { TensorInfo, TensorSpec } from '../src/checkpoint/header.js';
import {
  type Checkpoint,
  CONFIG_FILE,
  fingerprint,
  INDEX_FILE,
  openCheckpoint,
  readJsonObject,
} from '../src/checkpoint/open-checkpoint.js';
import { listSideFiles } from '../src/checkpoint/side-files.js';
import { READ_BYTES, TensorReader } from '../src/checkpoint/tensor-reader.js';
import { compressedConfig } from '../src/conversion/compression.js';
import { readReport } from '../src/conversion/existing-output.js';
import { type GroupPlan, groupLabel, groupTensors, planGroups } from '../src/conversion/groups.js';
import { findNativeGroups } from '../src/conversion/native-groups.js';
import { planConversion } from '../src/conversion/plan.js';
import { type GroupReport, isFitted, REPORT_FILE, type StoredReport } from '../src/conversion/report.js';
import { type CompressOptions, type DTYPE_NAMES, type Format, resolveSettings } from '../src/conversion/settings.js';
import { chooseEngine } from '../src/engine/choose-engine.js';
import { InterruptedError, NotACheckpointError } from '../src/errors.js';
import { detectModel } from '../src/models/detect.js';
import type { SquaredError } from './compute.js';
import type { RunHooks } from './progress.js';
import { loadFactors } from './rebuild.js';
import { ComputeWorker } from './worker-pool.js';

/** Errors are recomputed in f32; summation order aside they are the same. */
const ERROR_TOLERANCE = 1e-4;

export interface VerifyOptions extends RunHooks, Pick<CompressOptions, 'engine' | 'threads'> {}

export interface VerifiedGroup {
  readonly layer: number;
  readonly projection: string;
  readonly group: number;
  /** ‖W − Ŵ‖/‖W‖ as recomputed. */
  readonly relativeError: number;
  /** As in the result's record, where it has one. */
  readonly reported: number | undefined;
}

export interface Verification {
  /** What is wrong; empty when all is well. */
  readonly problems: readonly string[];
  readonly copiedTensors: number;
  readonly copiedBytes: number;
  readonly groups: readonly VerifiedGroup[];
  readonly sideFiles: number;
  readonly seconds: number;
}

/**
 * Reads a result and its source again and compares: every passed-through tensor byte by byte, every factorised group's
 * error with the reported one, names, dtypes, shapes, index, config and side files. A damaged folder throws an
 * `InputError`; what differs is collected.
 */
export async function verify(
  source: string,
  out: string,
  { onProgress, signal, ...options }: VerifyOptions = {},
): Promise<Verification> {
  const started = performance.now();
  const { engine: choice, threads } = resolveSettings(options);
  const original = await openCheckpoint(source);
  const result = await openCheckpoint(out);
  const report = await readReport(out);
  if (!report || report.kind === 'fit')
    throw new NotACheckpointError(result.folder, `it has no ${REPORT_FILE}, so what was converted is not known`);
  const problems: string[] = [];
  const format: Format = report.settings.format === 'hf' ? 'hf' : 'mobe';
  const groups = expectedGroups(original, result, report, format);
  const plan = planConversion({ source: original, groups, format, shardBytes: Number.POSITIVE_INFINITY });
  compareSpecs(
    plan.layout.shards.flatMap(({ tensors }) => tensors),
    result,
    problems,
  );
  await checkIndex(result, plan.bytesAfter, problems);
  await checkConfig(original, result, report, groups, format, problems);
  const sideFiles = await checkSideFiles(original, result, problems);

  const reader = new TensorReader();
  const engine = await chooseEngine(choice, threads, groups[0]?.problem);
  const worker = new ComputeWorker({ engine: engine.name, threads }, signal);
  const measured: VerifiedGroup[] = [];
  let copiedBytes = 0;
  try {
    const groupBytes = groups.flatMap(({ experts }) => experts).reduce((sum, { start, end }) => sum + end - start, 0);
    const copyBytes = plan.copies.reduce((sum, { start, end }) => sum + end - start, 0);
    onProgress?.({ kind: 'phase', phase: 'verify', groups: groups.length, bytes: copyBytes + groupBytes });
    for (const tensor of plan.copies) {
      if (signal?.aborted) throw new InterruptedError();
      const copy = result.tensors.get(tensor.name);
      if (!copy || copy.end - copy.start !== tensor.end - tensor.start) continue; // already a problem
      const difference = await firstDifference(tensor, copy, reader);
      if (difference !== undefined)
        problems.push(`tensor "${tensor.name}" in ${copy.file} differs from the source at byte ${difference}`);
      copiedBytes += tensor.end - tensor.start;
      onProgress?.({ kind: 'bytes', bytes: copiedBytes });
    }
    let bytes = copiedBytes;
    for (const group of groups) {
      if (signal?.aborted) throw new InterruptedError();
      if (groupTensors(group, format).some(({ name }) => !result.tensors.has(name))) continue; // already a problem
      const { squaredError, squaredNorm } = await groupError(group, result, format, reader, worker);
      const relativeError = Math.sqrt(squaredError / squaredNorm);
      const { layer, projection } = group;
      const reported = report.groups
        .filter(isFitted)
        .find((it) => it.layer === layer && it.projection === projection)?.relativeError;
      measured.push({ layer, projection, group: group.group, relativeError, reported });
      if (reported !== undefined && !(Math.abs(relativeError - reported) <= ERROR_TOLERANCE * reported)) {
        problems.push(`${groupLabel(group)}: the relative error is ${relativeError}, ${REPORT_FILE} says ${reported}`);
      }
      bytes += group.experts.reduce((sum, { start, end }) => sum + end - start, 0);
      onProgress?.({ kind: 'bytes', bytes });
    }
  } finally {
    await worker.close();
    await reader.close();
  }
  return {
    problems,
    copiedTensors: plan.copies.length,
    copiedBytes,
    groups: measured,
    sideFiles,
    seconds: (performance.now() - started) / 1000,
  };
}

/** The groups that were converted, as plans over the source's tensors. */
function expectedGroups(original: Checkpoint, result: Checkpoint, report: StoredReport, format: Format): GroupPlan[] {
  const model = detectModel(original);
  const plan = (layer: number, projection: GroupReport['projection'], options: CompressOptions): GroupPlan => {
    const [group] = planGroups(
      model,
      resolveSettings({ ...options, format, layers: [layer], projections: [projection] }),
    );
    return group as GroupPlan;
  };
  if (report.groups.length === 0) return [];
  const stored = report.settings.dtype as keyof typeof DTYPE_NAMES | undefined;
  if (format === 'mobe') {
    return findNativeGroups(result).map(({ layer, projection, problem: { bases, rank, activation } }) =>
      plan(layer, projection, { bases, rank, activation, ...(stored && { dtype: stored }) }),
    );
  }
  return report.groups.map(({ layer, projection }) => {
    // Only the dense shapes matter here; one basis of rank 1 is always a smaller problem.
    const group = plan(layer, projection, { bases: 1, rank: 1, ...(stored && { dtype: stored }) });
    if (report.kind !== 'expand') return group;
    // An expansion has the dtype of the native checkpoint it came from, which is not at hand.
    const dtype = result.tensors.get(group.names.experts[0] as string)?.dtype;
    return { ...group, dtype: (dtype ?? group.dtype) as GroupPlan['dtype'] };
  });
}

function compareSpecs(expected: readonly TensorSpec[], result: Checkpoint, problems: string[]): void {
  const left = new Set(result.tensors.keys());
  for (const { name, dtype, shape } of expected) {
    const tensor = result.tensors.get(name);
    left.delete(name);
    if (!tensor) problems.push(`tensor "${name}" is missing`);
    else if (tensor.dtype !== dtype || String(tensor.shape) !== String(shape)) {
      problems.push(
        `tensor "${name}" in ${tensor.file} is ${tensor.dtype} [${tensor.shape}], expected ${dtype} [${shape}]`,
      );
    }
  }
  for (const name of left) problems.push(`tensor "${name}" should not be there`);
}

async function checkIndex(result: Checkpoint, tensorBytes: number, problems: string[]): Promise<void> {
  if (result.shards.length === 1) return;
  const { metadata } = await readJsonObject(join(result.folder, INDEX_FILE));
  const total = (metadata as { total_size?: unknown } | undefined)?.total_size;
  if (total !== tensorBytes)
    problems.push(`${INDEX_FILE} says total_size ${String(total)}, the tensors have ${tensorBytes} bytes`);
}

async function checkConfig(
  source: Checkpoint,
  result: Checkpoint,
  report: StoredReport,
  groups: readonly GroupPlan[],
  format: Format,
  problems: string[],
): Promise<void> {
  const sourceFingerprint = await fingerprint(source);
  // An expansion was made from the native checkpoint, not from this source.
  if (report.kind !== 'expand' && report.sourceFingerprint !== sourceFingerprint) {
    problems.push(`${REPORT_FILE}: the result was made from another source`);
  }
  const model = detectModel(source);
  const changes =
    format === 'mobe'
      ? compressedConfig({ source, model, groups }, String(report.settings.solver), sourceFingerprint)
      : {};
  const expected: Record<string, unknown> = { ...source.config, ...changes };
  for (const key of new Set([...Object.keys(expected), ...Object.keys(result.config)])) {
    if (!isDeepStrictEqual(plain(expected[key]), plain(result.config[key]))) {
      problems.push(
        `${CONFIG_FILE}: "${key}" is ${JSON.stringify(result.config[key])}, expected ${JSON.stringify(expected[key])}`,
      );
    }
  }
}

const plain = (value: unknown): unknown => (value === undefined ? undefined : JSON.parse(JSON.stringify(value)));

async function checkSideFiles(source: Checkpoint, result: Checkpoint, problems: string[]): Promise<number> {
  let compared = 0;
  for (const { source: file, target } of await listSideFiles(source.folder)) {
    const expected = await readFile(join(source.folder, file));
    const actual = await readFile(join(result.folder, target)).catch(() => undefined);
    if (!actual) problems.push(`${target} is missing`);
    else if (!expected.equals(actual)) problems.push(`${target} differs from the source's ${file}`);
    compared++;
  }
  return compared;
}

/** Offset of the first byte in which two tensors of the same size differ. */
async function firstDifference(a: TensorInfo, b: TensorInfo, reader: TensorReader): Promise<number | undefined> {
  for (let offset = 0; offset < a.end - a.start; offset += READ_BYTES) {
    const length = Math.min(READ_BYTES, a.end - a.start - offset);
    const range = ({ file, start }: TensorInfo) => ({ file, start: start + offset, end: start + offset + length });
    const [x, y] = await Promise.all([reader.readRange(range(a)), reader.readRange(range(b))]);
    if (Buffer.compare(x, y) !== 0) return offset + x.findIndex((byte, i) => byte !== y[i]);
  }
  return undefined;
}

async function groupError(
  group: GroupPlan,
  result: Checkpoint,
  format: Format,
  reader: TensorReader,
  worker: ComputeWorker,
): Promise<SquaredError> {
  const { names, experts, sourceDtype, dtype } = group;
  const written = (name: string): TensorInfo => result.tensors.get(name) as TensorInfo;
  if (format === 'mobe') {
    await loadFactors(
      { group, bases: written(names.bases), coefficients: written(names.coefficients) },
      reader,
      worker,
    );
  }
  let error = 0;
  let norm = 0;
  for (const [expert, tensor] of experts.entries()) {
    const dense = { dtype: sourceDtype, bytes: await reader.readRange(tensor) };
    const bytes = await reader.readRange(written(names.experts[expert] as string));
    const own = await (format === 'mobe'
      ? worker.call('compare', [expert, bytes, dense])
      : worker.call('difference', [{ dtype, bytes }, dense]));
    error += own.squaredError;
    norm += own.squaredNorm;
  }
  return { squaredError: error, squaredNorm: norm };
}
