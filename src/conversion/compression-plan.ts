/** A compression, planned: all that `mobe plan` prints and `mobe compress` then does. Reads headers only. */
import type { Checkpoint } from '../checkpoint/open-checkpoint.js';
import { type ChosenEngine, chooseEngine } from '../engine/choose-engine.js';
import { detectModel } from '../models/detect.js';
import type { MoeModel } from '../models/family.js';
import { type ConversionPlan, outputBytes, planConversion } from './conversion-plan.js';
import { planGroups, productOf } from './group-plan.js';
import { type MemoryPlan, planMemory, type RemoteFitters } from './memory-plan.js';
import { type CompressOptions, decodedDtype, type RunSettings, resolveSettings } from './settings.js';

export interface CompressionPlan extends ConversionPlan {
  readonly settings: RunSettings;
  readonly engine: ChosenEngine;
  readonly model: MoeModel;
  readonly memory: MemoryPlan;
  /** Bytes on disk, headers included. */
  readonly diskBytes: number;
}

/**
 * Plans the compression of a checkpoint. Throws an `InputError` for an unknown model, options that do not fit it, an engine that
 * does not work here, or a memory budget that is too small.
 * @param fitters what fits the groups, where it is not this machine
 */
export async function planCompression(
  source: Checkpoint,
  options: CompressOptions = {},
  fitters?: RemoteFitters,
): Promise<CompressionPlan> {
  const given = resolveSettings(options);
  const model = detectModel(source);
  const groups = planGroups(model, given);
  const engine = fitters?.engine ?? (await chooseEngine(given.engine, given.threads, productOf(groups[0])));
  const settings = { ...given, engine: engine.name };
  const memory = planMemory(groups, settings, source.tensors.size, engine, fitters);
  const { format, shardSize: shardBytes, keepQuantized: keepQuantised } = settings;
  const plan = planConversion({
    source,
    groups,
    layers: model.layers,
    format,
    shardBytes,
    keepQuantised,
    decodedDtype: decodedDtype(settings),
  });
  return { ...plan, settings, engine, model, memory, diskBytes: outputBytes(plan) };
}
