import { floatBytes, isFloatDtype } from '../../src/checkpoint/dtype.js';
import type { TensorInfo } from '../../src/checkpoint/header.js';
import { type Checkpoint, fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { dataOf, isQuantised, quantisedMatrix } from '../../src/checkpoint/quantisation.js';
import { readMatrix, type StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { limitsBytes } from '../../src/conversion/allocation-options.js';
import { configChanges, nativeModelling } from '../../src/conversion/config-changes.js';
import { type ConversionPlan, copyBytes, planConversion } from '../../src/conversion/conversion-plan.js';
import { withDenseGroups } from '../../src/conversion/dense-groups.js';
import { readReport } from '../../src/conversion/existing-output.js';
import { type GroupPlaces, groupPlaces, keptCopies, type Place } from '../../src/conversion/group-places.js';
import {
  compareGroups,
  type GroupKey,
  type GroupPlan,
  groupKey,
  groupLabel,
  groupOf,
  planGroups,
  productOf,
  sourceBytes,
  weightEncoding,
} from '../../src/conversion/group-plan.js';
import { findNativeGroups } from '../../src/conversion/native-groups.js';
import { editedSideFiles } from '../../src/conversion/quantisation-changes.js';
import { isFitted, isKept, isRepaired, REPORT_FILE, type StoredReport } from '../../src/conversion/run-report.js';
import {
  type CompressOptions,
  decodedDtype,
  type Format,
  holdsWeights,
  isNative,
  resolveSettings,
} from '../../src/conversion/settings.js';
import { gather } from '../../src/conversion/slices.js';
import { takeRows } from '../../src/conversion/source-form.js';
import { chooseEngine } from '../../src/engine/choose-engine.js';
import { InterruptedError, NotACheckpointError } from '../../src/errors.js';
import { namedMethod } from '../../src/methods/registry.js';
import { detectModel } from '../../src/models/detect.js';
import { expertsOf } from '../../src/models/expert-names.js';
import type { MoeModel } from '../../src/models/family.js';
import type { ByteRange } from '../../src/sources/files.js';
import { ComputeThread } from '../compute/compute-thread.js';
import { addErrors, NO_ERROR, relativeError, type SquaredError } from '../compute/squared-error.js';
import { joinedBytes } from '../compute/written-weights.js';
import { openFiles, openSource, type Source } from '../machines/remote-files.js';
import type { RunHooks } from '../run-options.js';
import { passThrough } from '../stages/pass-through.js';
import { type FactorRanges, loadFactors, readFactors } from '../stages/rebuild.js';
import { checkConfig, checkDtypes, checkIndex, checkSideFiles, compareSpecs } from './verify-files.js';
import { compareKept, rangeIn } from './verify-kept.js';
import { checkManifest, type Integrity } from './verify-manifest.js';

/** Largest relative difference between a recomputed error and the reported one. f32 sums in another order differ slightly. */
const ERROR_TOLERANCE = 1e-4;

/** Options of `verify`. */
export interface VerifyOptions extends RunHooks, Pick<CompressOptions, 'engine' | 'threads'> {}

/** The error of a group that was verified. */
export interface VerifiedGroup extends GroupKey {
  /** ‖W − Ŵ‖/‖W‖, recomputed. */
  readonly relativeError: number;
  /** The error in the result's record; undefined if the record has none. */
  readonly reported: number | undefined;
}

/** What `verify` compared, and the differences that it found. */
export interface Verification {
  /** Descriptions of all differences; empty if there are none. */
  readonly problems: readonly string[];
  readonly copiedTensors: number;
  readonly copiedBytes: number;
  readonly groups: readonly VerifiedGroup[];
  readonly sideFiles: number;
  /** The check against the manifest; undefined if there is no manifest. If it finds a problem, nothing else is compared. */
  readonly integrity: Integrity | undefined;
  readonly seconds: number;
}

/**
 * Checks a result. First it checks by the manifest that the result is as it was written. Then it reads the result and its
 * source and compares: copied tensors byte by byte, the error of each factorised group with the reported error, names, dtypes,
 * shapes, index, config and side files. Differences are collected in `problems`. Throws an `InputError` if a folder is damaged
 * or is not a result.
 */
export async function verify(
  source: Source,
  out: Source,
  { onProgress, signal, peers, ...options }: VerifyOptions = {},
): Promise<Verification> {
  const started = performance.now();
  const hooks = { ...(onProgress && { onProgress }), ...(signal && { signal }) };
  const { engine: choice, threads } = resolveSettings(options);
  const original = await openSource(source, { peers });
  const integrity = await checkResult(out, { ...hooks, ...(peers && { peers }) });
  // A damaged result need not be compared with the source.
  if (integrity?.problems.length)
    return { ...NOTHING_COMPARED, ...integrity, integrity, seconds: secondsSince(started) };
  const result = await openSource(out, { peers });
  const report = await readReport(result.folder, result.files);
  if (!report || report.kind === 'fit')
    throw new NotACheckpointError(result.folder, `it has no ${REPORT_FILE}, so what was converted is not known`);
  const problems: string[] = [];
  const model = detectModel(original);
  const plain = expectedPlan(original, result, model, report);
  const plan = withRepaired(plain, model, report);
  // Groups that were not compressed hold the source's weights, byte for byte.
  const kept = plan.groups.filter((group) => report.groups.some((it) => isKept(it) && compareGroups(it, group) === 0));
  const groups = plan.groups.filter((group) => !kept.includes(group));
  const copies = [...plan.copies, ...kept.flatMap((group) => keptCopies(group, plan))];
  const sourceFingerprint = await fingerprint(original);
  if (report.kind !== 'expand' && report.sourceFingerprint !== sourceFingerprint)
    problems.push(`${REPORT_FILE}: the result was made from another source`);
  const specs = plan.layout.shards.flatMap(({ tensors }) => tensors);
  compareSpecs(specs, result, problems);
  await checkIndex(result, plan.bytesAfter, problems);
  const changes = configChanges(plain, model, { solver: String(report.settings.solver), sourceFingerprint });
  checkConfig(original, result, changes, problems);
  const edited = await editedSideFiles(plain, model);
  const sideFiles = await checkSideFiles(
    original,
    result,
    { modelling: nativeModelling(plain, model).add, edited },
    problems,
  );
  await checkDtypes(original, result, problems);

  const engine = await chooseEngine(choice, threads, productOf(groups[0]));
  const thread = new ComputeThread({ engine: engine.name, threads }, signal);
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
    copiedBytes += await compareKept(plan, groups, result, sound, problems, signal);
    let bytes = copiedBytes;
    for (const group of groups) {
      if (signal?.aborted) throw new InterruptedError();
      const places = groupPlaces(group, plan);
      const needed = [...places.shared, ...places.experts.flat()];
      if (!needed.every(({ tensor }) => sound.has(tensor))) continue; // already a problem
      const error = relativeError(await groupError(group, places, plan, result, thread));
      const own = report.groups.find((it) => compareGroups(it, group) === 0);
      const reported = own && (isFitted(own) ? own.relativeError : isRepaired(own) ? own.repairedError : undefined);
      measured.push({ ...groupKey(group), relativeError: error, reported });
      if (reported !== undefined && !(Math.abs(error - reported) <= ERROR_TOLERANCE * reported)) {
        problems.push(`${groupLabel(group)}: the relative error is ${error}, ${REPORT_FILE} says ${reported}`);
      }
      bytes += sourceBytes(group);
      onProgress?.({ kind: 'bytes', bytes });
    }
  } finally {
    await thread.close();
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

async function checkResult(out: Source, hooks: RunHooks): Promise<Integrity | undefined> {
  const { folder, files } = openFiles(out, hooks);
  return checkManifest(folder, files, hooks).finally(() => files.close());
}

const NOTHING_COMPARED = { copiedTensors: 0, copiedBytes: 0, groups: [], sideFiles: 0 };

const secondsSince = (started: number): number => (performance.now() - started) / 1000;

const sizeOf = (tensor: TensorInfo | undefined): number | undefined => tensor && tensor.end - tensor.start;

/** Plans again how the result was made from the source's tensors. */
function expectedPlan(original: Checkpoint, result: Checkpoint, model: MoeModel, report: StoredReport): ConversionPlan {
  const { settings, kind } = report;
  const format: Format = settings.format === 'hf' ? 'hf' : 'mobe';
  const base = { source: original, layers: model.layers, format, shardBytes: Number.POSITIVE_INFINITY };
  const groups = expectedGroups(model, result, report, format);
  if (kind !== 'expand') {
    const keepQuantised = settings.keepQuantized === true;
    // Earlier versions decoded the experts of all converted layers.
    const quantiseAgain =
      keepQuantised && holdsWeights({ format }) && groups.some((group) => isQuantisedIn(result, group));
    return planConversion({ ...base, groups, keepQuantised, quantiseAgain, decodedDtype: decodedDtype(settings) });
  }
  // An expansion was made from a native checkpoint, which is not available here. So its dtypes are taken from the result.
  const quantised = [...original.tensors.values()].filter(isQuantised);
  const decoded = quantised.map((tensor) => {
    const [expert] = expertsOf(tensor, original); // a fused tensor has several matrices
    const name = expert?.matrix.place.tensor ?? quantisedMatrix(tensor, original).name;
    return result.tensors.get(name)?.dtype ?? '';
  });
  // Checkpoints of format_version 1 are expanded to one tensor for each expert, even if the source's are fused.
  const separate = groups.some(({ experts: [first] }) => first && !result.tensors.has(first.place.tensor));
  return planConversion({
    ...base,
    groups: groups.map((group) => {
      const { name, place } = group.experts[0] as StoredMatrix;
      const dtype = result.tensors.get(separate ? name : place.tensor)?.dtype ?? '';
      return isFloatDtype(dtype) ? { ...group, dtype } : group;
    }),
    separate,
    keepQuantised: [...result.tensors.values()].some(isQuantised),
    decodedDtype: decoded.find(isFloatDtype) ?? decodedDtype({}),
  });
}

/** Whether a result has weights of a group as the source has them, quantised. */
function isQuantisedIn(result: Checkpoint, { experts }: GroupPlan): boolean {
  const [{ name, place }] = experts as [StoredMatrix];
  const tensor = dataOf(name, result) ?? dataOf(place.tensor, result) ?? result.tensors.get(`${place.tensor}_blocks`);
  return tensor !== undefined && isQuantised(tensor);
}

/** The plan with the dense groups that a repair has changed, according to the record. */
function withRepaired(plan: ConversionPlan, { layers }: MoeModel, { groups }: StoredReport): ConversionPlan {
  const repaired = new Set(groups.filter(isRepaired).map(({ layer }) => layer));
  return withDenseGroups(
    plan,
    layers.filter(({ layer }) => repaired.has(layer)),
    'down_proj',
  );
}

/** The groups that were converted, as plans over the source's tensors. Throws `NotACheckpointError` if the source lacks one. */
function expectedGroups(model: MoeModel, result: Checkpoint, report: StoredReport, format: Format): GroupPlan[] {
  if (isNative({ format }) && report.groups.every(isKept)) return []; // also if there are no groups
  // A record may be damaged: this refuses a dtype that does not exist.
  const resolved = resolveSettings(dtypeOptions(report));
  const { dtype, basesDtype, scaleGroup, allocation } = resolved;
  const limited = limitsBytes(resolved) && !allocation;
  const expected = (key: GroupKey, known?: GroupPlan): GroupPlan => {
    const found = groupOf(model, key, { dtype, basesDtype, scaleGroup, allocation }, known);
    if (!found)
      throw new NotACheckpointError(result.folder, `it claims to hold ${groupLabel(key)}, which its source has not`);
    return limited && known ? { ...found, stored: known.stored } : found;
  };
  // A method that encodes weights itself has its sizes in the options.
  const method = namedMethod(report.settings.method);
  if (method?.writes) return planGroups(model, resolveSettings(methodOptions(report)));
  // Standard weights show only their dense shapes, so no factor sizes are known.
  return isNative({ format })
    ? findNativeGroups(result).map((native) => expected(native, native))
    : report.groups.filter((group) => !isRepaired(group)).map((group) => expected(group));
}

/** The options of a record that decide dtypes. */
function dtypeOptions({ settings }: StoredReport): CompressOptions {
  const { dtype, basesDtype, scaleGroup, averageBits, keepBytes, allocation } = settings;
  // Of factor files without their record only its hash is known.
  const whole = typeof allocation === 'object' ? allocation : undefined;
  return { dtype, basesDtype, scaleGroup, averageBits, keepBytes, allocation: whole } as CompressOptions;
}

/** The options of a record that decide the groups of a method without factors. */
const methodOptions = ({
  settings: { method, width, scaleGroup, layers, projections },
}: StoredReport): CompressOptions => ({ method, width, scaleGroup, layers, projections }) as CompressOptions;

/** Compares the copied tensors, chunk by chunk as they were written. Returns the bytes compared. */
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
  { shared, experts }: GroupPlaces,
  plan: ConversionPlan,
  result: Checkpoint,
  thread: ComputeThread,
): Promise<SquaredError> {
  const { format, dtype } = group;
  const rangeOf = (place: Place): ByteRange => rangeIn(result, place);
  const ranges = (places: readonly Place[]): FactorRanges =>
    Object.fromEntries(places.map((place) => [place.factor, rangeOf(place)]));
  const readWritten = async (places: readonly Place[]): Promise<Record<string, Uint8Array>> => {
    const read = await readFactors(ranges(places), result.files);
    for (const { factor, part } of places)
      if (part)
        read[factor] =
          'rows' in part
            ? takeRows(part.rows, read[factor] as Uint8Array)
            : gather(part, floatBytes(dtype), read[factor] as Uint8Array);
    return read;
  };
  const native = isNative(plan) && !group.dense;
  if (native) await loadFactors({ group, shared: ranges(shared) }, result.files, thread);
  let error = NO_ERROR;
  for (const [expert, matrix] of group.experts.entries()) {
    const { encoding } = matrix;
    const dense = { format: { ...format, encoding }, bytes: await readMatrix(plan.source.files, matrix) };
    const written = await readWritten(experts[expert] ?? []);
    const stored = weightEncoding(group, expert);
    const own = native
      ? thread.call('compare', [expert, written, dense])
      : thread.call('difference', [{ format: { ...format, encoding: stored }, bytes: joinedBytes(written) }, dense]);
    error = addErrors(error, await own);
  }
  return error;
}
