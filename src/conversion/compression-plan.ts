/** Plans a compression, from headers only: `mobe plan` prints the plan, and `mobe compress` carries it out. */
import type { RecordFacts } from '../calibration/record.js';
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { type ChosenEngine, chooseEngine } from '../engine/choose-engine.js';
import { allowTensorCores, choosePrecision } from '../engine/tensor-cores.js';
import { BudgetTooSmallError, InputError } from '../errors.js';
import { detectModel } from '../models/detect.js';
import type { MoeModel } from '../models/family.js';
import { languageConfig } from '../models/language-config.js';
import { chooseMetric } from './choose-metric.js';
import { type ConversionPlan, outputBytes, planConversion } from './conversion-plan.js';
import { checkRebuilt, defaultSizes, planGroups, productOf } from './group-plan.js';
import { type MemoryPlan, planMemory, type RemoteFitters } from './memory-plan.js';
import { recordSize } from './metric-plan.js';
import { checkPacked } from './native-factors.js';
import { checkPackedWeights } from './packed-weights.js';
import {
  type CompressOptions,
  decodedDtype,
  formatOf,
  hasPrecisions,
  holdsWeights,
  isNative,
  type RunSettings,
  resolveSettings,
} from './settings.js';
import { followSource, withFloats } from './source-defaults.js';

/** A planned conversion with its settings, its engine and the memory it will take. */
export interface CompressionPlan extends ConversionPlan {
  readonly settings: RunSettings;
  readonly engine: ChosenEngine;
  readonly model: MoeModel;
  readonly memory: MemoryPlan;
  /** Says which metric the fits have, and why. */
  readonly metricNote?: string | undefined;
  /** Says which sizes were chosen and why, if the default share cannot be kept in the usual way. */
  readonly sizesNote: string | undefined;
  /** Bytes of the output's shards on disk, including headers. */
  readonly diskBytes: number;
}

/**
 * Plans the compression of a checkpoint. Throws an `InputError` for an unknown model, options that do not fit it, an engine
 * that does not work here, or a memory budget that is too small.
 * @param fitters the workers that fit the groups; undefined if this machine does
 * @param facts those of the calibration record, if the fits use one
 * @param writes factor files are planned like a checkpoint of rebuilt weights, but have the dtypes of factors; probes of an allocation of
 * bytes are factor files of floats
 */
export async function planCompression(
  source: Checkpoint,
  options: CompressOptions = {},
  fitters?: RemoteFitters,
  facts?: RecordFacts,
  writes: 'checkpoint' | 'factor files' | 'float factors' = 'checkpoint',
): Promise<CompressionPlan> {
  // Engines are tried once, also if several numbers of groups are planned: their matrices have the same shapes.
  let engine: Promise<ChosenEngine> | undefined;
  const choose: typeof chooseEngine = (...choice) => {
    engine ??= chooseEngine(...choice);
    return engine;
  };
  const plan = (own: CompressOptions): Promise<CompressionPlan> =>
    planWithin(source, own, choose, fitters, facts, writes);
  try {
    return await plan(options);
  } catch (error) {
    if (!(error instanceof BudgetTooSmallError)) throw error;
    const groups = await groupsWithin(source, options.groups, (groups) => plan({ ...options, groups }));
    throw new BudgetTooSmallError(resolveSettings(options).maxMemory, error.smallestBytes, groups);
  }
}

/** The fewest groups, twice as many each time, with which a plan stays within its budget. */
async function groupsWithin(
  source: Checkpoint,
  given = 1,
  plan: (groups: number) => Promise<CompressionPlan>,
): Promise<number | undefined> {
  const experts = Math.max(...detectModel(source).layers.map((layer) => layer.experts.up_proj.length));
  for (let groups = 2 * given; groups <= experts / 2; groups *= 2) {
    try {
      await plan(groups);
      return groups;
    } catch (error) {
      // This number may not divide the experts or the bases, or the method may have no groups.
      if (!(error instanceof InputError)) throw error;
    }
  }
  return undefined;
}

async function planWithin(
  source: Checkpoint,
  options: CompressOptions,
  choose: typeof chooseEngine,
  fitters: RemoteFitters | undefined,
  facts: RecordFacts | undefined,
  writes: 'checkpoint' | 'factor files' | 'float factors',
): Promise<CompressionPlan> {
  const model = detectModel(source);
  const rebuilds = writes === 'checkpoint' && holdsWeights({ format: formatOf(options) });
  const followed = writes === 'float factors' ? withFloats(model, options) : followSource(model, options);
  const given = resolveSettings(rebuilds ? options : followed);
  if (rebuilds) checkRebuilt(given);
  const groups = planGroups(model, given);
  if (groups[0]?.coded) checkPackedWeights(groups, given, writes);
  if (isNative(given)) for (const group of groups) checkPacked(group, source.config);
  const { precision: asked = hasPrecisions(given) ? undefined : 'f32' } = given;
  if (asked !== 'f32') allowTensorCores();
  const engine = fitters?.engine ?? (await choose(given.engine, given.threads, productOf(groups[0])));
  const sizes = defaultSizes(model, given);
  const precision = choosePrecision(engine, asked);
  const chosen = { ...given, ...sizes?.options, engine: engine.name, precision };
  const size = facts && recordSize(facts, languageConfig(source.config));
  const { metric, memory, note } = chooseMetric(groups, chosen, size, (metric) =>
    planMemory(groups, chosen, source.tensors.size, engine, fitters, metric && size && { metric, size }),
  );
  const settings: RunSettings = { ...chosen, ...(facts && size && { weighing: { facts, size, metric } }) };
  const { format, shardSize: shardBytes, keepQuantized: keepQuantised } = settings;
  const plan = planConversion({
    source,
    groups,
    layers: model.layers,
    format,
    shardBytes,
    keepQuantised,
    quantiseAgain: keepQuantised && holdsWeights(settings),
    decodedDtype: decodedDtype(settings),
  });
  return {
    ...plan,
    settings,
    engine,
    model,
    memory,
    metricNote: note,
    sizesNote: sizes?.note,
    diskBytes: outputBytes(plan),
  };
}
