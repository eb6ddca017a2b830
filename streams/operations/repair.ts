import { hiddenActivation } from '../../src/calibration/hidden-activation.js';
import { openRecord } from '../../src/calibration/open-record.js';
import type { CalibrationRecord } from '../../src/calibration/record.js';
import { SHRINKAGE_RULE } from '../../src/calibration/shrinkage.js';
import { type Checkpoint, fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { configChanges, nativeModelling } from '../../src/conversion/config-changes.js';
import { type ConversionPlan, planConversion, planFactors } from '../../src/conversion/conversion-plan.js';
import { withDenseGroups } from '../../src/conversion/dense-groups.js';
import { formatRanges, productOf } from '../../src/conversion/group-plan.js';
import { calibrationRecord } from '../../src/conversion/metric-plan.js';
import { editedSideFiles } from '../../src/conversion/quantisation-changes.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, decodedDtype, resolveSettings } from '../../src/conversion/settings.js';
import { chooseEngine } from '../../src/engine/choose-engine.js';
import { OptionError, OtherRecordError } from '../../src/errors.js';
import { DEFAULT_METHOD } from '../../src/methods/registry.js';
import { detectModel } from '../../src/models/detect.js';
import type { MoeModel } from '../../src/models/family.js';
import { languageConfig } from '../../src/models/language-config.js';
import { joinFiles } from '../../src/sources/join-files.js';
import { withThread } from '../compute/compute-thread.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { type LayerToRepair, repairLayer } from '../stages/repair-layer.js';
import { convert } from './convert.js';
import { type FactoredResult, openFactored } from './factored-groups.js';
import type { OutputPlace } from './open-output.js';

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
  if (repairsDown) checkHidden(source, detected);
  const { plan, layers } = planRepair(plain, factored, detected, repairsDown);
  const activation = hiddenActivation(source);
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
          for (const layer of layers) {
            const own = [...layer.factored.map(({ group }) => group), ...(layer.down ? [layer.down] : [])];
            if (own.some((group) => wanted.has(group)))
              yield* repairLayer(layer, {
                ...{ plan, reader, thread, missing: wanted, activation },
                record: await record.layer(layer.source.layer),
              });
            await record.release(layer.source.layer);
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
  return planConversion({ source, groups, layers, format, shardBytes, decodedDtype: decodedDtype(settings) });
}

/**
 * Adds the groups of dense down_proj to the plan. Throws `OptionError` if the result has factor files alone, in which dense
 * weights have no place.
 */
function planRepair(
  plain: ConversionPlan,
  { format, groups, place }: FactoredResult,
  { layers: all }: MoeModel,
  repairsDown: boolean,
): { plan: ConversionPlan; layers: LayerToRepair[] } {
  const ofLayer = (number: number) => groups.filter(({ group }) => group.layer === number);
  const layers = all.filter(({ layer }) => ofLayer(layer).length > 0);
  const dense = layers.filter(({ layer }) => !ofLayer(layer).some(({ group }) => group.projection === 'down_proj'));
  if (repairsDown && format === 'factors' && dense.length)
    throw new OptionError(
      '--repair',
      `${place.folder} has no factors of down_proj in layer ${formatRanges(dense.map(({ layer }) => layer))}, so a repaired one has no place. Use --repair factors, or repair the checkpoint that "mobe export" makes of these factors`,
    );
  const plan = repairsDown ? withDenseGroups(plain, dense, 'down_proj') : plain;
  const downs = new Map(plan.groups.filter(({ dense }) => dense).map((group) => [group.layer, group] as const));
  return {
    plan,
    layers: layers.map((source) => {
      return { source, factored: ofLayer(source.layer), repairsDown, down: downs.get(source.layer) };
    }),
  };
}

/** Throws `OptionError` if the hidden activations of the experts depend on more than their weights. */
function checkHidden({ config, tensors, folder }: Checkpoint, { layers }: MoeModel): void {
  const biases = [...tensors.keys()].find((name) =>
    layers.some(({ prefix }) => name.startsWith(`${prefix}experts`) && /bias$/.test(name)),
  );
  const limit = languageConfig(config).swiglu_limit;
  const reason = biases
    ? `they have biases, such as ${biases}`
    : limit
      ? `config.json limits them to ${limit}`
      : undefined;
  if (reason)
    throw new OptionError(
      '--repair',
      `the hidden activations of the experts in ${folder} are not those of plain weights: ${reason}. Use --repair factors`,
    );
}
