import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { configChanges, nativeModelling } from '../../src/conversion/config-changes.js';
import { planConversion } from '../../src/conversion/conversion-plan.js';
import { type FactorFile, openFactorFolder } from '../../src/conversion/factor-files.js';
import { checkNative, type GroupPlan, productOf } from '../../src/conversion/group-plan.js';
import { editedSideFiles } from '../../src/conversion/quantisation-changes.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import {
  type CompressOptions,
  decodedDtype,
  holdsWeights,
  isNative,
  resolveSettings,
} from '../../src/conversion/settings.js';
import { chooseEngine } from '../../src/engine/choose-engine.js';
import { detectModel } from '../../src/models/detect.js';
import { joinFiles } from '../../src/sources/join-files.js';
import { withThread } from '../compute/compute-thread.js';
import { openFiles, openSource, type Source } from '../machines/remote-files.js';
import type { OutputRecord } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { matchFactors } from '../stages/rebuild.js';
import { copyAll, keptReport, rebuildAll } from '../stages/write-factored.js';
import { checkAllowed } from './compress.js';
import { convert } from './convert.js';
import { commonSettings } from './factored-groups.js';
import type { OutputPlace } from './open-output.js';

/** Options of `exportFactors`. */
export type ExportOptions = Pick<
  CompressOptions,
  'format' | 'engine' | 'shardSize' | 'threads' | 'keepQuantized' | 'maxError'
>;

/**
 * Makes a checkpoint from the factor files that `fitFactors` wrote to `factors`. It is the checkpoint that `compress` would
 * have written with the same dtype. Throws `FactorMismatchError` if a file does not belong to `model`, and otherwise a `MobeError` as `compress`
 * does.
 */
export async function exportFactors(
  model: Source,
  factors: Source,
  out: OutputPlace,
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
  const [opened, folder] = [await openSource(model, run), openFiles(factors, run)];
  const source = { ...opened, files: joinFiles(opened, folder) };
  const detected = detectModel(source);
  const sourceFingerprint = await fingerprint(source);
  const all = await openFactorFolder(folder);
  // In a native checkpoint, a layer is compressed as a whole or not at all.
  const { used: files, kept } = isNative({ format }) ? byLayers(all, maxError) : { used: all, kept: [] };
  const factored = files.map((file) => matchFactors(file, detected, sourceFingerprint));
  if (isNative({ format })) for (const { group } of factored) checkNative(detected, group.method);
  const fitted = await commonSettings(all, folder);
  const groups = factored.map(({ group }) => group);
  const { layers } = detected;
  const plan = planConversion({
    source,
    groups,
    layers,
    format,
    shardBytes: shardSize,
    keepQuantised,
    quantiseAgain: keepQuantised && holdsWeights({ format }),
    decodedDtype: decodedDtype(fitted),
  });
  checkAllowed({ ...plan, settings: { ...fitted, keepQuantized: keepQuantised } }, run);
  // Native factors are copied. Only standard weights need an engine.
  const engine = holdsWeights({ format }) ? await chooseEngine(choice, threads, productOf(files[0])) : undefined;
  return convert({
    plan,
    out,
    inputs: [source.folder, folder.folder],
    circumstances: { threads: engine && threads },
    experts({ reader, missing, signal }) {
      const pairs = factored.map(
        (it, i) => [{ ...it, group: plan.groups[i] as GroupPlan }, files[i] as FactorFile] as const,
      );
      const wanted = pairs.filter(([{ group }]) => missing.includes(group));
      return engine
        ? withThread({ engine: engine.name, threads }, signal, (thread) =>
            rebuildAll(plan, wanted, reader, thread, maxError),
          )
        : copyAndKeep(kept, copyAll(plan, wanted, reader));
    },
    companions: {
      modelling: nativeModelling(plan, detected),
      edited: await editedSideFiles(plan, detected),
      config: configChanges(plan, detected, { solver: String(fitted.solver), sourceFingerprint }),
    },
    record: {
      kind: 'export',
      sourceFingerprint,
      ...(engine && { engine: engineRecord(engine) }),
      // The setting "engine" is the engine of the fit.
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

/** Splits files by layers: `used` are layers in which no group has an error above `maxError`, `kept` are the others. */
function byLayers(files: readonly FactorFile[], maxError = Number.POSITIVE_INFINITY) {
  const poor = files.filter(({ metadata }) => !(metadata.report.relativeError <= maxError));
  const left = new Set(poor.map(({ metadata }) => metadata.report.layer));
  const isLeft = ({ metadata }: FactorFile): boolean => left.has(metadata.report.layer);
  return { used: files.filter((file) => !isLeft(file)), kept: files.filter(isLeft) };
}

/** Reports the groups that stay uncompressed before the copies of the others. */
async function* copyAndKeep(
  kept: readonly FactorFile[],
  copied: AsyncIterable<OutputRecord>,
): AsyncGenerator<OutputRecord> {
  for (const { metadata } of kept) yield { finished: keptReport(metadata.report, metadata.report.relativeError, 0) };
  yield* copied;
}
