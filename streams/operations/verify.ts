import { floatBytes, isFloatDtype } from '../../src/checkpoint/dtype.js';
import type { TensorInfo } from '../../src/checkpoint/header.js';
import { type Checkpoint, fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { isQuantised, quantisedMatrix } from '../../src/checkpoint/quantisation.js';
import { readMatrix } from '../../src/checkpoint/stored-matrix.js';
import { configChanges, nativeModelling } from '../../src/conversion/config-changes.js';
import {
  type ConversionPlan,
  copyBytes,
  type ExpertPlace,
  expertCopies,
  expertPlaces,
  planConversion,
} from '../../src/conversion/conversion-plan.js';
import { readReport } from '../../src/conversion/existing-output.js';
import {
  compareGroups,
  type GroupKey,
  type GroupPlan,
  groupLabel,
  planGroups,
  sourceBytes,
} from '../../src/conversion/group-plan.js';
import { findNativeGroups } from '../../src/conversion/native-groups.js';
import { editedSideFiles } from '../../src/conversion/quantisation-changes.js';
import { isFitted, isKept, REPORT_FILE, type StoredReport } from '../../src/conversion/run-report.js';
import { type CompressOptions, decodedDtype, type Format, resolveSettings } from '../../src/conversion/settings.js';
import { chooseEngine } from '../../src/engine/choose-engine.js';
import { InterruptedError, NotACheckpointError } from '../../src/errors.js';
import { detectModel } from '../../src/models/detect.js';
import type { MoeModel } from '../../src/models/family.js';
import { normaliseLocation } from '../../src/sources/files.js';
import type { SquaredError } from '../compute/compute.js';
import { ComputeWorker } from '../compute/worker-pool.js';
import { openFiles, openSource } from '../machines/remote-files.js';
import type { RunHooks } from '../run-options.js';
import { passThrough } from '../stages/pass-through.js';
import { loadFactors } from '../stages/rebuild.js';
import { checkConfig, checkDtypes, checkIndex, checkSideFiles, compareSpecs } from './verify-files.js';
import { checkManifest, type Integrity } from './verify-manifest.js';

/** Errors are recomputed in f32; summation order aside they are the same. */
const ERROR_TOLERANCE = 1e-4;

export interface VerifyOptions extends RunHooks, Pick<CompressOptions, 'engine' | 'threads'> {}

export interface VerifiedGroup extends GroupKey {
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
  /** By the result's manifest; undefined where it has none. When it finds a problem, nothing more is compared. */
  readonly integrity: Integrity | undefined;
  readonly seconds: number;
}

/**
 * First that the result is what was written, by its manifest; then that what was written is right. Reads the result and its
 * source again and compares: every passed-through tensor byte by byte, every factorised group's
 * error with the reported one, names, dtypes, shapes, index, config and side files. A damaged folder throws an
 * `InputError`; what differs is collected.
 */
export async function verify(
  source: string,
  out: string,
  { onProgress, signal, peers, ...options }: VerifyOptions = {},
): Promise<Verification> {
  const started = performance.now();
  const hooks = { ...(onProgress && { onProgress }), ...(signal && { signal }) };
  const { engine: choice, threads } = resolveSettings(options);
  const original = await openSource(source, peers);
  const integrity = await checkResult(out, { ...hooks, ...(peers && { peers }) });
  // What is not as it was written need not be compared with the source.
  if (integrity?.problems.length)
    return { ...NOTHING_COMPARED, ...integrity, integrity, seconds: secondsSince(started) };
  const result = await openSource(out, peers);
  const report = await readReport(result.folder, result.files);
  if (!report || report.kind === 'fit')
    throw new NotACheckpointError(result.folder, `it has no ${REPORT_FILE}, so what was converted is not known`);
  const problems: string[] = [];
  const model = detectModel(original);
  const plan = expectedPlan(original, result, model, report);
  // Groups that were kept hold the source's weights, byte for byte.
  const kept = plan.groups.filter((group) => report.groups.some((it) => isKept(it) && compareGroups(it, group) === 0));
  const groups = plan.groups.filter((group) => !kept.includes(group));
  const copies = [...plan.copies, ...kept.flatMap((group) => expertCopies(group, plan))];
  const sourceFingerprint = await fingerprint(original);
  if (report.kind !== 'expand' && report.sourceFingerprint !== sourceFingerprint)
    problems.push(`${REPORT_FILE}: the result was made from another source`);
  const specs = plan.layout.shards.flatMap(({ tensors }) => tensors);
  compareSpecs(specs, result, problems);
  await checkIndex(result, plan.bytesAfter, problems);
  const changes = configChanges(plan, model, { solver: String(report.settings.solver), sourceFingerprint });
  checkConfig(original, result, changes, problems);
  const edited = await editedSideFiles(plan, model);
  const sideFiles = await checkSideFiles(
    original,
    result,
    { modelling: nativeModelling(plan, model).add, edited },
    problems,
  );
  await checkDtypes(original, result, problems);

  const engine = await chooseEngine(choice, threads, groups[0]?.problem);
  const worker = new ComputeWorker({ engine: engine.name, threads }, signal);
  const measured: VerifiedGroup[] = [];
  const sound = new Set(
    specs.filter(({ name, bytes }) => sizeOf(result.tensors.get(name)) === bytes).map((it) => it.name),
  );
  let copiedBytes = 0;
  try {
    const groupBytes = groups.reduce((sum, group) => sum + sourceBytes(group), 0);
    const bytesToCopy = copies.reduce((sum, copy) => sum + copyBytes(copy), 0);
    onProgress?.({ kind: 'phase', phase: 'verify', groups: groups.length, bytes: bytesToCopy + groupBytes });
    copiedBytes = await compareCopies({ ...plan, copies }, result, hooks, problems);
    let bytes = copiedBytes;
    for (const group of groups) {
      if (signal?.aborted) throw new InterruptedError();
      const { names } = group;
      const needed = [
        ...expertPlaces(group, plan).map(({ tensor }) => tensor),
        ...(plan.format === 'mobe' ? [names.bases, names.coefficients] : []),
      ];
      if (!needed.every((name) => sound.has(name))) continue; // already a problem
      const { squaredError, squaredNorm } = await groupError(group, plan, result, worker);
      const relativeError = Math.sqrt(squaredError / squaredNorm);
      const { layer, projection, group: part, groups: parts } = group;
      const reported = report.groups.filter(isFitted).find((it) => compareGroups(it, group) === 0)?.relativeError;
      measured.push({ layer, projection, group: part, groups: parts, relativeError, reported });
      if (reported !== undefined && !(Math.abs(relativeError - reported) <= ERROR_TOLERANCE * reported)) {
        problems.push(`${groupLabel(group)}: the relative error is ${relativeError}, ${REPORT_FILE} says ${reported}`);
      }
      bytes += sourceBytes(group);
      onProgress?.({ kind: 'bytes', bytes });
    }
  } finally {
    await worker.close();
    await original.files.close();
    await result.files.close();
  }
  return {
    problems,
    copiedTensors: new Set(copies.map(({ target }) => target)).size,
    copiedBytes,
    groups: measured.sort(compareGroups),
    sideFiles,
    integrity,
    seconds: secondsSince(started),
  };
}

async function checkResult(out: string, hooks: RunHooks): Promise<Integrity | undefined> {
  const files = openFiles(out, hooks.peers);
  return checkManifest(normaliseLocation(out), files, hooks).finally(() => files.close());
}

const NOTHING_COMPARED = { copiedTensors: 0, copiedBytes: 0, groups: [], sideFiles: 0 };

const secondsSince = (started: number): number => (performance.now() - started) / 1000;

const sizeOf = (tensor: TensorInfo | undefined): number | undefined => tensor && tensor.end - tensor.start;

/** How the result was made, over the source's tensors. */
function expectedPlan(original: Checkpoint, result: Checkpoint, model: MoeModel, report: StoredReport): ConversionPlan {
  const { settings, kind } = report;
  const format: Format = settings.format === 'hf' ? 'hf' : 'mobe';
  const base = { source: original, layers: model.layers, format, shardBytes: Number.POSITIVE_INFINITY };
  const groups = expectedGroups(model, result, report, format);
  if (kind !== 'expand') {
    const keepQuantised = settings.keepQuantized === true;
    return planConversion({ ...base, groups, keepQuantised, decodedDtype: decodedDtype(settings) });
  }
  // An expansion has what the native checkpoint it came from had, which is not at hand.
  const quantised = [...original.tensors.values()].filter(isQuantised);
  const decoded = quantised.map((tensor) => result.tensors.get(quantisedMatrix(tensor, original).name)?.dtype ?? '');
  return planConversion({
    ...base,
    groups: groups.map((group) => {
      const dtype = result.tensors.get(group.names.experts[0] as string)?.dtype ?? '';
      return isFloatDtype(dtype) ? { ...group, dtype } : group;
    }),
    separate: true,
    keepQuantised: [...result.tensors.values()].some(isQuantised),
    decodedDtype: decoded.find(isFloatDtype) ?? decodedDtype({}),
  });
}

/** The groups that were converted, as plans over the source's tensors. */
function expectedGroups(model: MoeModel, result: Checkpoint, report: StoredReport, format: Format): GroupPlan[] {
  if (format === 'mobe' && report.groups.every(isKept)) return []; // or there are none
  const dtype = report.settings.dtype as CompressOptions['dtype'];
  const plan = ({ layer, projection, group, groups }: GroupKey, options: CompressOptions): GroupPlan => {
    const one = { ...options, groups, ...(dtype && { dtype }), format, layers: [layer], projections: [projection] };
    const found = planGroups(model, resolveSettings(one)).find((it) => it.group === group);
    const label = groupLabel({ layer, projection, group, groups });
    if (!found) throw new NotACheckpointError(result.folder, `it claims to hold ${label}, which its source has not`);
    return found;
  };
  if (format === 'mobe') {
    return findNativeGroups(result).map((native) => {
      const { bases, rank, activation } = native.problem;
      return plan(native, { bases: bases * native.groups, rank, activation });
    });
  }
  // Only the dense shapes matter here; one basis of rank 1 is always a smaller problem.
  return report.groups.map((group) => plan(group, { bases: group.groups, rank: 1 }));
}

/** Compares what is not factorised, chunk by chunk as it was written. */
async function compareCopies(
  plan: ConversionPlan,
  result: Checkpoint,
  { onProgress, signal }: RunHooks,
  problems: string[],
): Promise<number> {
  const differing = new Set<string>();
  let bytes = 0;
  for await (const { tensor, offset, data } of passThrough(plan.copies, plan.source.files)) {
    if (signal?.aborted) throw new InterruptedError();
    bytes += data.byteLength;
    onProgress?.({ kind: 'bytes', bytes });
    const copy = result.tensors.get(tensor);
    if (!copy || differing.has(tensor) || copy.start + offset + data.byteLength > copy.end) continue; // already a problem
    const start = copy.start + offset;
    const actual = await result.files.readRange({ file: copy.file, start, end: start + data.byteLength });
    if (Buffer.compare(actual, data) === 0) continue;
    differing.add(tensor);
    const byte = offset + actual.findIndex((value, i) => value !== data[i]);
    problems.push(`tensor "${tensor}" in ${copy.file} differs from the source at byte ${byte}`);
  }
  return bytes;
}

async function groupError(
  group: GroupPlan,
  plan: ConversionPlan,
  result: Checkpoint,
  worker: ComputeWorker,
): Promise<SquaredError> {
  const { names, experts, format, dtype } = group;
  const written = (name: string): TensorInfo => result.tensors.get(name) as TensorInfo;
  const native = plan.format === 'mobe';
  if (native) {
    const factors = { group, bases: written(names.bases), coefficients: written(names.coefficients) };
    await loadFactors(factors, result.files, worker);
  }
  const { rows, cols, rank } = group.problem;
  const bytes = floatBytes(dtype) * rows * (native ? rank : cols);
  const places = expertPlaces(group, plan);
  let error = 0;
  let norm = 0;
  for (const [expert, matrix] of experts.entries()) {
    const dense = { format, bytes: await readMatrix(plan.source.files, matrix) };
    const { tensor, offset } = places[expert] as ExpertPlace;
    const { file, start } = written(tensor);
    const actual = await result.files.readRange({ file, start: start + offset, end: start + offset + bytes });
    const rebuilt = { format: { ...format, encoding: { kind: 'float', dtype } as const }, bytes: actual };
    const own = await (native
      ? worker.call('compare', [expert, actual, dense])
      : worker.call('difference', [rebuilt, dense]));
    error += own.squaredError;
    norm += own.squaredNorm;
  }
  return { squaredError: error, squaredNorm: norm };
}
