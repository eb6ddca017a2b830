/** Short fits from which an allocation of bases is decided. They are kept in a folder, and an interrupted run resumes from them. */

import { createHash } from 'node:crypto';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { PROBES_PREFIX } from '../../src/calibration/record.js';
import { basesOf, curveBases, curveLayer, type ErrorCurve, type Part, partsOf } from '../../src/conversion/allocate.js';
import { readReport } from '../../src/conversion/existing-output.js';
import { remainingShare } from '../../src/conversion/expected-error.js';
import {
  type FactorFile,
  type FactorMetadata,
  factorTensors,
  isFactorFile,
  openFactorFolder,
} from '../../src/conversion/factor-files.js';
import { type GroupPlan, projectionKey } from '../../src/conversion/group-plan.js';
import { type CompressOptions, hasPrecisions, type RunSettings } from '../../src/conversion/settings.js';
import { OptionError } from '../../src/errors.js';
import { isPath } from '../../src/location.js';
import { PROJECTIONS, type Projection } from '../../src/models/family.js';
import { listOutput } from '../../src/output/folder-checks.js';
import { VERSION } from '../../src/version.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions } from '../run-options.js';
import { fitGroups } from './fit-groups.js';
import type { OutputPlace } from './open-output.js';

/** Steps of a probe. The order of the groups' errors is then that of whole fits; docs/solver.md has the figures. */
const PROBE_STEPS = 40;

/** The fits of one number of bases. */
interface Probe {
  readonly bases: number;
  /** The layers that are fitted; undefined: all of the run. */
  readonly layers: readonly number[] | undefined;
  readonly options: CompressOptions;
  readonly folder: string;
}

/** The probes of a run and their place. */
export interface ProbePlan {
  /** A part for each layer and projection, with the bases that all have alike. */
  readonly parts: readonly Part[];
  /** The probe of all layers first, then those of one layer with other numbers of bases. */
  readonly probes: readonly [Probe, ...Probe[]];
  /** All fits. */
  readonly groups: readonly GroupPlan[];
  readonly steps: number;
  readonly folder: string;
  /** The folder to remove when the run's result is whole; undefined if the probes are kept with a calibration record. */
  readonly temporary: string | undefined;
}

/**
 * Plans the probes of a run.
 * @param groups the groups of the run if all have the same number of bases
 * @param settings of that run
 */
export function planProbes(
  groups: readonly GroupPlan[],
  settings: RunSettings,
  sourceFingerprint: string,
  out: OutputPlace | undefined,
): ProbePlan {
  const parts = partsOf(groups);
  const part = parts[0] as GroupPlan;
  const usual = basesOf(part);
  if (parts.some((other) => basesOf(other) !== usual))
    throw new OptionError(
      '--allocate',
      'experts of this model are of several sizes, for which --keep chooses different sizes. Give --bases and --rank, or --allocate uniform.',
    );
  const steps = Math.min(PROBE_STEPS, settings.steps);
  const { method, rank, activation, dtype, basesDtype, scaleGroup } = settings;
  const { batchExperts, engine, threads, seed, maxMemory } = settings;
  const projections = PROJECTIONS.filter((it) => parts.some(({ projection }) => projection === it));
  const cut = settings.groups === 1 ? undefined : settings.groups;
  const common = {
    method,
    rank,
    activation: activation as CompressOptions['activation'],
    groups: cut,
    projections,
    dtype,
    ...(scaleGroup !== undefined && { basesDtype, scaleGroup }),
    batchExperts,
    engine,
    seed,
    steps,
  };
  const { precision } = settings;
  const decisive = {
    ...{ VERSION, sourceFingerprint, ...common, usual, layers: settings.layers },
    ...(precision !== 'f32' && { precision }),
  };
  const hash = createHash('sha256').update(JSON.stringify(decisive)).digest('hex').slice(0, 12);
  const { folder, temporary } = placeOf(hash, settings, out);
  const probe = (bases: number, layers: readonly number[] | undefined): Probe => ({
    ...{ bases, layers, folder: join(folder, `bases-${bases}`) },
    options: {
      ...{ ...common, bases, layers: layers && [...layers], threads, maxMemory },
      ...(hasPrecisions(settings) && { precision }),
    },
  });
  const layer = curveLayer(parts);
  const { least, most } = curveBases(part);
  const others = [...new Set([least, most])].filter((bases) => bases !== usual);
  return {
    ...{ parts, steps, folder, temporary },
    probes: [probe(usual, settings.layers), ...others.map((bases) => probe(bases, [layer]))],
    groups: [
      ...groups,
      ...others.flatMap((bases) => groups.filter((it) => it.layer === layer).map((it) => resized(it, bases))),
    ],
  };
}

/** A group with its part of another number of bases. */
const resized = (group: GroupPlan, bases: number): GroupPlan => ({
  ...group,
  problem: group.method.bases?.change(group.problem, bases / group.groups) ?? group.problem,
});

/** Probes are kept in the calibration record, else beside the result, or if that is no folder in the system's temporary folder. */
function placeOf(hash: string, { calibration }: Pick<RunSettings, 'calibration'>, out: OutputPlace | undefined) {
  if (calibration !== undefined) return { folder: join(calibration, `${PROBES_PREFIX}${hash}`), temporary: undefined };
  const local = typeof out === 'string' && isPath(out) ? resolve(out) : undefined;
  const temporary = local
    ? join(dirname(local), `.mobe-probes-${basename(local)}`)
    : join(tmpdir(), `mobe-probes-${hash}`);
  return { folder: local ? join(temporary, hash) : temporary, temporary };
}

/** Bytes of the factors of probes. */
export const probeBytes = (groups: readonly GroupPlan[]): number =>
  groups.flatMap(factorTensors).reduce((sum, { bytes }) => sum + bytes, 0);

/** Whether all probes are finished. */
export async function areProbesFinished({ probes }: Pick<ProbePlan, 'probes'>): Promise<boolean> {
  for (const { folder } of probes) if (!(await readReport(folder))) return false;
  return true;
}

/** Runs the probes that are not finished. Throws as `fitGroups` does. */
export async function runProbes(model: Source, { probes, groups }: ProbePlan, run: RunOptions): Promise<void> {
  const { force: _, ownStage: __, ...kept } = run;
  let finished = 0;
  for (const { folder } of probes) finished += ((await listOutput(folder)) ?? []).filter(isFactorFile).length;
  if (finished < groups.length)
    run.onProgress?.({ kind: 'phase', phase: 'probe', groups: groups.length - finished, bytes: probeBytes(groups) });
  for (const { folder, options, bases } of probes)
    await fitGroups(model, folder, options, {
      ...kept,
      onProgress(progress) {
        if (progress.kind === 'group') run.onProgress?.({ ...progress, bases });
        else if (progress.kind !== 'plan' && progress.kind !== 'phase') run.onProgress?.(progress);
      },
    });
}

/** The results of finished probes. */
export interface ProbeResults {
  /** The factors of all layers, at the bases that all have alike. */
  readonly files: readonly FactorFile[];
  /** Their relative squared errors, by `projectionKey`. */
  readonly errors: ReadonlyMap<string, number>;
  /** The share of these errors that the whole fits are expected to leave. */
  readonly remaining: ReadonlyMap<string, number>;
  /** How the error of a projection falls with bases, found in one layer. */
  readonly curves: ReadonlyMap<Projection, ErrorCurve>;
}

/**
 * Reads the results of finished probes. Throws as `openFactorFolder` does.
 * @param steps of the whole fits
 */
export async function readProbes({ parts, probes }: ProbePlan, steps: number): Promise<ProbeResults> {
  const layer = curveLayer(parts);
  const curves = new Map<Projection, Array<[number, number]>>();
  let all: readonly FactorFile[] = [];
  for (const probe of [...probes].sort((a, b) => a.bases - b.bases)) {
    const files = await openFactorFolder(probe.folder);
    if (probe === probes[0]) all = files;
    const errors = meansOf(files, (report) => report.relativeError ** 2 * remainingShare(report.losses ?? [], steps));
    for (const { projection } of parts.filter((part) => part.layer === layer)) {
      const error = errors.get(projectionKey({ layer, projection })) as number;
      curves.set(projection, [...(curves.get(projection) ?? []), [probe.bases, error]]);
    }
  }
  return {
    files: all,
    errors: meansOf(all, ({ relativeError }) => relativeError ** 2),
    remaining: meansOf(all, ({ losses = [] }) => remainingShare(losses, steps)),
    curves,
  };
}

/** The mean over the groups of each projection, which have equal shares of its experts; by `projectionKey`. */
function meansOf(
  files: readonly FactorFile[],
  measure: (report: FactorMetadata['report']) => number,
): Map<string, number> {
  const sums = new Map<string, { sum: number; count: number }>();
  for (const { metadata } of files) {
    const key = projectionKey(metadata.report);
    const { sum, count } = sums.get(key) ?? { sum: 0, count: 0 };
    sums.set(key, { sum: sum + measure(metadata.report), count: count + 1 });
  }
  return new Map([...sums].map(([key, { sum, count }]) => [key, sum / count]));
}
