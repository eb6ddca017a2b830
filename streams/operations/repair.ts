import { checkLayers, openRecord } from '../../src/calibration/open-record.js';
import type { CalibrationRecord } from '../../src/calibration/record.js';
import { SHRINKAGE_RULE } from '../../src/calibration/shrinkage.js';
import { type Checkpoint, fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { configChanges, nativeModelling } from '../../src/conversion/config-changes.js';
import { type ConversionPlan, planConversion, planFactors } from '../../src/conversion/conversion-plan.js';
import { productOf } from '../../src/conversion/group-plan.js';
import { calibrationRecord } from '../../src/conversion/metric-record.js';
import { editedSideFiles } from '../../src/conversion/quantisation-changes.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, decodedDtype, resolveSettings } from '../../src/conversion/settings.js';
import { chooseEngine } from '../../src/engine/choose-engine.js';
import { OptionError, OtherRecordError } from '../../src/errors.js';
import { DEFAULT_METHOD } from '../../src/methods/registry.js';
import { detectModel } from '../../src/models/detect.js';
import type { MoeModel } from '../../src/models/family.js';
import { joinFiles } from '../../src/sources/join-files.js';
import { withThread } from '../compute/compute-thread.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { repairLayer } from '../stages/repair-layer.js';
import { convert } from './convert.js';
import { type FactoredResult, openFactored } from './factored-groups.js';
import type { OutputPlace } from './open-output.js';
import { layerToRepair, planDown } from './repair-plan.js';

/** Options of `repair`. */
export interface RepairOptions extends Pick<CompressOptions, 'engine' | 'shardSize' | 'threads'> {
  /** The folder of a calibration record of the model, or an open one. */
  readonly calibration: string | CalibrationRecord;
  /** The factors alone, or down_proj too; default: down_proj too. */
  readonly repair?: 'factors' | 'factors+down' | undefined;
}

/**
 * Fits the factors of a native checkpoint or of factor files anew to a calibration record of `model`, from which they were made,
 * and writes a result of the same kind: the bases stay, and each expert's A is solved in the metric of the record. Then down_proj
 * is fitted to the hidden activations that the compressed gate and up give. Memory holds the shared factors of one layer. Throws
 * a `MobeError`, as `compress` does.
 */
export async function repair(
  model: Source,
  result: Source,
  out: OutputPlace,
  { calibration, repair = 'factors+down', ...options }: RepairOptions,
  run: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  const { engine: choice, threads, shardSize } = resolveSettings(options);
  const opened = await openSource(model, run);
  const detected = detectModel(opened);
  const sourceFingerprint = await fingerprint(opened);
  const factored = await openFactored(result, detected, sourceFingerprint, run);
  checkMethods(factored);
  const record = typeof calibration === 'string' ? await openRecord(calibration) : calibration;
  if (record.facts.sourceFingerprint !== sourceFingerprint) throw new OtherRecordError(record.name);
  const source = { ...opened, files: joinFiles(opened, factored.place) };
  const plain = planResult(source, factored, detected, shardSize);
  const repairsDown = repair === 'factors+down';
  const plan = repairsDown ? planDown(plain, detected) : plain;
  const layers = plan.groups.map(({ layer }) => layer);
  if (typeof calibration === 'string') await checkLayers(calibration, record.facts, layers);
  const engine = await chooseEngine(choice, threads, productOf(plan.groups[0]));
  try {
    return await convert({
      plan,
      out,
      inputs: [source.folder, factored.place.folder, record.name],
      circumstances: { threads },
      experts: ({ reader, missing, signal }) =>
        withThread({ engine: engine.name, threads }, signal, async function* (thread) {
          for (const kept of factored.kept) yield { finished: kept };
          const wanted = new Set(missing);
          for (const source of detected.layers) {
            const { layer } = source;
            if (!missing.some((group) => group.layer === layer)) continue;
            const tools = { plan, reader, record: await record.layer(layer), thread, missing: wanted };
            yield* repairLayer(layerToRepair(source, factored.groups, plan, repairsDown), tools);
            await record.release(layer);
          }
        }),
      ...(factored.format === 'mobe' && {
        companions: {
          modelling: nativeModelling(plain, detected),
          edited: await editedSideFiles(plain, detected),
          config: configChanges(plain, detected, { solver: String(factored.settings.solver), sourceFingerprint }),
        },
      }),
      record: {
        kind: 'repair',
        sourceFingerprint,
        engine: engineRecord(engine),
        settings: {
          ...factored.settings,
          repaired: {
            what: repair,
            calibration: calibrationRecord(record.facts, undefined).calibration,
            shrinkage: SHRINKAGE_RULE,
            engine: engine.name,
            from: factored.fingerprint,
          },
        },
      },
      run,
      started,
    });
  } finally {
    await record.close();
  }
}

/** Throws `OptionError` for a method whose factors cannot be fitted in a metric. */
function checkMethods({ groups, place }: FactoredResult): void {
  const other = groups.find(({ group }) => group.method.name !== DEFAULT_METHOD.name);
  if (other)
    throw new OptionError(
      '--repair',
      `${place.folder} has factors of ${other.group.method.title}, and only those of ${DEFAULT_METHOD.title} can be repaired`,
    );
}

function planResult(
  source: Checkpoint,
  { format, groups: factored, settings }: FactoredResult,
  { layers }: MoeModel,
  shardBytes: number,
): ConversionPlan {
  const groups = factored.map(({ group }) => group);
  if (format === 'factors') return planFactors(source, groups);
  const keepQuantised = settings.keepQuantized === true;
  return planConversion({
    source,
    groups,
    layers,
    format,
    shardBytes,
    keepQuantised,
    decodedDtype: decodedDtype(settings),
  });
}
