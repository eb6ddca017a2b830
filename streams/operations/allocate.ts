/** Gives a run its allocation of bases or bytes, if it wants one: from short fits, and with a calibration record from sensitivities. */
import { existsSync } from 'node:fs';
import { rm } from 'node:fs/promises';
import { join } from 'node:path';
import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { type AllocationInput, allocate, type Part } from '../../src/conversion/allocate.js';
import { allocateBytes } from '../../src/conversion/allocate-bytes.js';
import { type Allocation, allocationSchema } from '../../src/conversion/allocation.js';
import { limitsBytes } from '../../src/conversion/allocation-options.js';
import type { CompressionPlan } from '../../src/conversion/compression-plan.js';
import { readReport } from '../../src/conversion/existing-output.js';
import { isFactorFile } from '../../src/conversion/factor-files.js';
import { type BytesToAllocate, bytesToAllocate, expectedAllocation } from '../../src/conversion/plan-bytes.js';
import { type CompressOptions, resolveSettings, type Settings } from '../../src/conversion/settings.js';
import { OutputNotEmptyError } from '../../src/errors.js';
import { architectureOf } from '../../src/inference/language-model.js';
import { isPath } from '../../src/location.js';
import { denseParameters } from '../../src/methods/parameters.js';
import { checkComputable } from '../../src/models/expert-form.js';
import { checkOutside, listOutput, notEmpty } from '../../src/output/folder-checks.js';
import { PARTIAL_FOLDER } from '../../src/output/journal.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions } from '../run-options.js';
import { findSensitivities, type SensitivityRun } from './find-sensitivities.js';
import type { OutputPlace } from './open-output.js';
import { planRun } from './plan-run.js';
import { type ProbePlan, planProbes, readProbes, runProbes } from './probe.js';
import type { SensitivityKind } from './sensitivities.js';

/**
 * Calls `use` with the options and their allocation, which is decided first if the options want one and have none. Short fits that
 * lie beside the result are removed when `use` has made it.
 * @param check refuses the run by its plan with the same number of bases everywhere, before the short fits
 */
export async function withAllocation<Result>(
  model: Source,
  out: OutputPlace,
  options: CompressOptions,
  run: RunOptions,
  use: (options: CompressOptions) => Promise<Result>,
  check: (uniform: CompressionPlan) => void = () => {},
): Promise<Result> {
  if (!wantsAllocation(resolveSettings(options))) return use(options);
  await checkPlace(model, out, options, run);
  const outlook = await planAllocation(model, options, run, out);
  if (!outlook.bytes) check(outlook.uniform);
  const known = await allocationIn(out, outlook, run);
  const sized = withRank(options, outlook);
  if (known) return use({ ...sized, allocation: known });
  if (outlook.bytes) check(await planExpected(model, options, outlook, run));
  else if (options.calibration !== undefined) await planExpected(model, options, outlook, run);
  await runProbes(model, outlook.probes, run);
  const result = await use({ ...sized, allocation: await decideAllocation(model, outlook, run) });
  await removeProbes(outlook.probes);
  return result;
}

/** Refuses an output folder before the short fits, if it is clear already that the result cannot be written there. */
async function checkPlace(
  model: Source,
  out: OutputPlace,
  { calibration }: CompressOptions,
  { force }: RunOptions,
): Promise<void> {
  if (typeof out !== 'string' || !isPath(out)) return;
  const inputs = [model, calibration].filter((it) => typeof it === 'string');
  await checkOutside(out, inputs);
  const held = (await listOutput(out)) ?? [];
  // An unfinished run may have left files without a record: factor files, or a part of what it commits.
  const begun = held.some((name) => isFactorFile(name)) || existsSync(join(out, PARTIAL_FOLDER));
  if (!force && held.length && !begun && !(await readReport(out))) throw notEmpty(out, held);
}

/** The options of a run with the same number of bases everywhere. */
const EVEN = {
  allocate: 'uniform',
  sensitivity: undefined,
  maxLoss: undefined,
} as const;

/** The options of a run before its allocation is decided: the same number of bases everywhere, or the expected bytes. */
export const expectedOptions = (options: CompressOptions, outlook: AllocationOutlook): CompressOptions =>
  outlook.bytes
    ? { ...withRank(options, outlook), allocation: expectedAllocation(outlook.bytes) }
    : { ...options, ...EVEN };

/** The options with the rank with which bytes were counted. The usual sizes may have a smaller one than the full rank. */
export const withRank = (options: CompressOptions, { bytes, uniform }: AllocationOutlook): CompressOptions =>
  bytes && uniform.settings.rank !== undefined ? { ...options, rank: uniform.settings.rank } : options;

/** Plans a run before the short fits, so that too small a memory is refused. A metric takes more memory than they do. */
async function planExpected(
  model: Source,
  options: CompressOptions,
  outlook: AllocationOutlook,
  run: RunOptions,
): Promise<CompressionPlan> {
  const { planned, record } = await planRun(model, expectedOptions(options, outlook), run);
  await record?.close();
  await planned.source.files.close();
  return planned;
}

/** Removes short fits that are not kept in a calibration record. */
export async function removeProbes({ temporary }: ProbePlan): Promise<void> {
  if (temporary !== undefined) await rm(temporary, { recursive: true, force: true });
}

export const wantsAllocation = ({ allocate: choice, allocation }: Pick<Settings, 'allocate' | 'allocation'>): boolean =>
  choice !== 'uniform' && allocation === undefined;

/** An allocation before it is decided. */
export interface AllocationOutlook {
  readonly settings: Settings;
  /** The run with the same number of bases everywhere. */
  readonly uniform: CompressionPlan;
  readonly sourceFingerprint: string;
  readonly probes: ProbePlan;
  /** What is divided, if bytes are allocated. */
  readonly bytes: BytesToAllocate | undefined;
}

/** Plans how an allocation is decided. Throws as `planRun` does. */
export async function planAllocation(
  model: Source,
  options: CompressOptions,
  run: Pick<RunOptions, 'peers' | 'workers' | 'fileSystem' | 'record'>,
  out?: OutputPlace,
): Promise<AllocationOutlook> {
  const settings = resolveSettings(options);
  const inBytes = limitsBytes(settings);
  // The record is opened, so that a wrong one is refused before the probes, but they need no metric.
  const { planned: uniform, record } = await planRun(
    model,
    {
      ...options,
      ...(!inBytes && EVEN),
      ...(options.calibration !== undefined && { metric: 'none', repair: 'none' }),
    },
    run,
    inBytes ? 'float factors' : 'checkpoint',
  );
  await record?.close();
  if (settings.allocate === 'calibrated') checkComputable(uniform.source);
  if (settings.sensitivity === 'kl') architectureOf(uniform.source);
  const sourceFingerprint = await fingerprint(uniform.source);
  await uniform.source.files.close();
  const probes = planProbes(uniform.groups, uniform.settings, sourceFingerprint, out);
  const bytes = inBytes ? bytesToAllocate(uniform, settings) : undefined;
  return { settings, uniform, sourceFingerprint, probes, bytes };
}

/**
 * The allocation of a finished result in `out`. The same command then finds its result although its probes are gone, and another
 * one is refused before it probes.
 */
async function allocationIn(
  out: OutputPlace,
  { sourceFingerprint }: AllocationOutlook,
  { force }: RunOptions,
): Promise<Allocation | undefined> {
  if (force || typeof out !== 'string' || !isPath(out) || !(await listOutput(out))?.length) return undefined;
  const report = await readReport(out);
  if (!report) return undefined;
  const { data } = allocationSchema.safeParse(report.settings.allocation);
  if (data && report.sourceFingerprint === sourceFingerprint) return data;
  throw new OutputNotEmptyError(out, 'holds another result');
}

/** Decides the allocation when its probes are finished. Measures sensitivities if they are wanted and not known. */
export async function decideAllocation(
  model: Source,
  { settings, uniform, probes, bytes }: AllocationOutlook,
  run: SensitivityRun,
): Promise<Allocation> {
  const { files, errors, remaining, curves } = await readProbes(probes, settings.steps);
  const { parts } = probes;
  const { bases, keep, maxLoss, calibration, sensitivity } = settings;
  const wanted = calibration !== undefined && sensitivity !== undefined;
  // Without a record, relative squared errors count alike in all projections and layers.
  const sensitivities = wanted
    ? await findSensitivities(
        { model, folder: calibration, kind: sensitivity, probes, files, settings: uniform.settings },
        run,
      )
    : errors;
  const measured = { curves, remaining, sensitivities, measure: wanted ? MEASURES[sensitivity] : 'error' } as const;
  if (bytes) return allocateBytes({ ...bytes, ...measured });
  return allocate({
    ...{ parts, ...measured },
    ...expertParameters(uniform, parts),
    keep: bases === undefined ? keep : undefined,
    maxLoss,
  });
}

const MEASURES = { local: 'output', kl: 'kl' } as const satisfies Record<SensitivityKind, Allocation['measure']>;

/** The parameters of the routed experts of the layers to convert, and of those that are in no part. */
function expertParameters(
  { model }: CompressionPlan,
  parts: readonly Part[],
): Pick<AllocationInput, 'expertParameters' | 'denseParameters'> {
  const converted = new Set(parts.map(({ layer }) => layer));
  const all = model.layers
    .filter(({ layer }) => converted.has(layer))
    .flatMap(({ experts }) => Object.values(experts).flat())
    .reduce((sum, { rows, cols }) => sum + rows * cols, 0);
  const inParts = parts.reduce((sum, { problem, groups }) => sum + groups * denseParameters(problem), 0);
  return { expertParameters: all, denseParameters: all - inParts };
}
