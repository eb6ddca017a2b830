import type { FloatDtype } from '../../src/checkpoint/dtype.js';
import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { configChanges, nativeModelling } from '../../src/conversion/config-changes.js';
import { type ConversionPlan, expertCopies, planConversion } from '../../src/conversion/conversion-plan.js';
import { type FactorFile, openFactorFolder } from '../../src/conversion/factor-files.js';
import { groupLabel, nativeTensors, planGroups } from '../../src/conversion/group-plan.js';
import { editedSideFiles } from '../../src/conversion/quantisation-changes.js';
import { engineRecord, type FittedGroupReport, type KeptGroupReport } from '../../src/conversion/run-report.js';
import { type CompressOptions, decodedDtype, type Format, resolveSettings } from '../../src/conversion/settings.js';
import { chooseEngine } from '../../src/engine/choose-engine.js';
import { FactorMismatchError } from '../../src/errors.js';
import { detectModel } from '../../src/models/detect.js';
import type { MoeModel } from '../../src/models/family.js';
import type { ByteRange, RangeReader } from '../../src/sources/files.js';
import { type ComputeWorker, withWorker } from '../compute/worker-pool.js';
import { openSource } from '../machines/remote-files.js';
import type { OutputChunk } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { keptReport } from '../stages/max-error.js';
import { passThrough } from '../stages/pass-through.js';
import { type FactoredGroup, rebuildWeights } from '../stages/rebuild.js';
import { convert } from './convert.js';

export type ExportOptions = Pick<
  CompressOptions,
  'format' | 'engine' | 'shardSize' | 'threads' | 'keepQuantized' | 'maxError'
>;

/** Writes the checkpoint that `compress` would have written, from the factor files `fit` left in `factors`. */
export async function exportFactors(
  model: string,
  factors: string,
  out: string,
  options: ExportOptions = {},
  run: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  const {
    format,
    shardSize,
    threads,
    engine: choice,
    keepQuantized: keepQuantised,
    maxError,
  } = resolveSettings(options);
  const source = await openSource(model, run.peers, run.fileSystem);
  const detected = detectModel(source);
  const sourceFingerprint = await fingerprint(source);
  const all = await openFactorFolder(factors);
  // A native checkpoint is compressed by whole layers.
  const { used: files, kept } = format === 'mobe' ? byLayers(all, maxError) : { used: all, kept: [] };
  const factored = files.map((file) => matchFactors(file, detected, format, sourceFingerprint));
  const { settings: fitted } = (all[0] as FactorFile).metadata;
  const groups = factored.map(({ group }) => group);
  const { layers } = detected;
  const plan = planConversion({
    source,
    groups,
    layers,
    format,
    shardBytes: shardSize,
    keepQuantised,
    decodedDtype: decodedDtype(fitted),
  });
  // Native factors are copied; only standard weights are computed.
  const engine = format === 'hf' ? await chooseEngine(choice, threads, files[0]?.problem) : undefined;
  return convert({
    plan,
    out,
    inputs: [source.folder, factors],
    circumstances: { threads: engine && threads },
    expertBranch({ reader, missing, onGroup, signal }) {
      const pairs = factored.map((it, i) => [it, files[i] as FactorFile] as const);
      const wanted = pairs.filter(([{ group }]) => missing.includes(group));
      return engine
        ? withWorker({ engine: engine.name, threads }, signal, (worker) =>
            rebuildAll(plan, wanted, reader, worker, onGroup, maxError),
          )
        : copyAll(wanted, kept, reader, onGroup);
    },
    modelling: nativeModelling(plan, detected),
    edited: await editedSideFiles(plan, detected),
    config: configChanges(plan, detected, { solver: String(fitted.solver), sourceFingerprint }),
    record: {
      kind: 'export',
      sourceFingerprint,
      ...(engine && { engine: engineRecord(engine) }),
      // "engine" among the settings is that of the fit.
      settings: {
        ...fitted,
        format,
        shardSize,
        keepQuantized: keepQuantised,
        ...(maxError !== undefined && { maxError }),
        ...(engine && engine.name !== fitted.engine && { rebuiltOn: engine.name }),
      },
    },
    run,
    started,
  });
}

/** The group a factor file belongs to. Throws where the file is not of this model. */
function matchFactors(file: FactorFile, model: MoeModel, format: Format, sourceFingerprint: string): FactoredGroup {
  const { path, metadata, problem, tensors } = file;
  const { layer, projection, group: number, groups } = metadata.report;
  if (metadata.sourceFingerprint !== sourceFingerprint)
    throw new FactorMismatchError(path, 'it was fitted to another checkpoint');
  const { bases, rank, activation } = problem;
  const options = {
    format,
    bases: bases * groups,
    groups,
    rank,
    activation,
    layers: [layer],
    projections: [projection],
  };
  const group = planGroups(model, resolveSettings(options)).find((it) => it.group === number);
  if (!group || JSON.stringify(group.problem) !== JSON.stringify(problem)) {
    throw new FactorMismatchError(path, `its shapes do not fit ${groupLabel(metadata.report)}`);
  }
  const { A, B, alpha } = tensors;
  const size = (A.end - A.start) / problem.experts;
  const factor = (expert: number): ByteRange => ({
    file: path,
    start: A.start + expert * size,
    end: A.start + (expert + 1) * size,
  });
  return {
    group: { ...group, dtype: A.dtype as FloatDtype },
    bases: B,
    coefficients: alpha,
    factor,
    dense: group.experts,
  };
}

type OnGroup = (report: FittedGroupReport | KeptGroupReport) => void;

/** The files of layers that hold no group with a larger error, and the others. */
function byLayers(files: readonly FactorFile[], maxError = Number.POSITIVE_INFINITY) {
  const poor = files.filter(({ metadata }) => !(metadata.report.relativeError <= maxError));
  const left = new Set(poor.map(({ metadata }) => metadata.report.layer));
  const isLeft = ({ metadata }: FactorFile): boolean => left.has(metadata.report.layer);
  return { used: files.filter((file) => !isLeft(file)), kept: files.filter(isLeft) };
}

/** What the fit reported. How long it took is not kept. */
const reportOf = ({ metadata }: FactorFile): FittedGroupReport => ({ ...metadata.report, seconds: 0 });

async function* rebuildAll(
  plan: ConversionPlan,
  factored: ReadonlyArray<readonly [FactoredGroup, FactorFile]>,
  reader: RangeReader,
  worker: ComputeWorker,
  onGroup: OnGroup,
  maxError: number | undefined,
): AsyncGenerator<OutputChunk> {
  for (const [it, file] of factored) {
    const { experts, rows, cols } = it.group.problem;
    const started = performance.now();
    if (maxError !== undefined) {
      const error = await rebuildError(it, plan, reader, worker);
      if (!(error <= maxError)) {
        yield* passThrough(expertCopies(it.group, plan), reader);
        onGroup(keptReport(it.group, error, (performance.now() - started) / 1000));
        continue;
      }
    }
    const { squaredError, squaredNorm } = yield* rebuildWeights(it, plan, reader, worker);
    onGroup({
      ...reportOf(file),
      relativeError: Math.sqrt(squaredError / squaredNorm),
      mse: squaredError / (experts * rows * cols),
      seconds: (performance.now() - started) / 1000,
    });
  }
}

/** What `compress` decides by, which is the error of the weights as they are rounded. */
async function rebuildError(...rebuilt: Parameters<typeof rebuildWeights>): Promise<number> {
  const weights = rebuildWeights(...rebuilt);
  for (;;) {
    const { value, done } = await weights.next();
    if (done) return Math.sqrt(value.squaredError / value.squaredNorm);
  }
}

/** The factors as they are, under their native names. */
async function* copyAll(
  factored: ReadonlyArray<readonly [FactoredGroup, FactorFile]>,
  kept: readonly FactorFile[],
  reader: RangeReader,
  onGroup: OnGroup,
): AsyncGenerator<OutputChunk> {
  for (const { metadata } of kept) onGroup(keptReport(metadata.report, metadata.report.relativeError, 0));
  for (const [{ group, bases, coefficients, factor }, file] of factored) {
    const ranges = [bases, coefficients, ...group.experts.map((_, expert) => factor(expert))];
    const copies = nativeTensors(group).map(({ name }, part) => ({
      target: name,
      offset: 0,
      source: ranges[part] as ByteRange,
    }));
    yield* passThrough(copies, reader);
    onGroup(reportOf(file));
  }
}
