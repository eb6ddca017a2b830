/** A compression, planned: all that `mobe plan` prints and `mobe compress` then does. Reads headers only. */
import { type Checkpoint, openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { type ChosenEngine, chooseEngine } from '../engine/choose-engine.js';
import { detectModel } from '../models/detect.js';
import type { MoeModel } from '../models/family.js';
import { type ConfigChanges, nativeConfig } from '../models/native.js';
import { type GroupPlan, planGroups } from './groups.js';
import { type MemoryPlan, planMemory } from './memory.js';
import { type ConversionPlan, outputBytes, planConversion } from './plan.js';
import { type CompressOptions, type RunSettings, resolveSettings } from './settings.js';

export interface CompressionPlan extends ConversionPlan {
  readonly settings: RunSettings;
  readonly engine: ChosenEngine;
  readonly model: MoeModel;
  readonly memory: MemoryPlan;
  /** Bytes on disk, headers included. */
  readonly diskBytes: number;
}

/**
 * Plans the compression of the checkpoint in `folder`. Throws an `InputError` for a damaged checkpoint, an unknown
 * model, options that do not fit it, an engine that does not work here, or a memory budget that is too small.
 */
export async function planCompression(folder: string, options: CompressOptions = {}): Promise<CompressionPlan> {
  const given = resolveSettings(options);
  const source = await openCheckpoint(folder);
  const model = detectModel(source);
  const groups = planGroups(model, given);
  const engine = await chooseEngine(given.engine, given.threads, groups[0]?.problem);
  const settings = { ...given, engine: engine.name };
  const memory = planMemory(groups, settings, source.tensors.size, engine);
  const plan = planConversion({ source, groups, format: settings.format, shardBytes: settings.shardSize });
  return { ...plan, settings, engine, model, memory, diskBytes: outputBytes(plan) };
}

/** What changes in the `config.json` of a native result. */
export function compressedConfig(
  { source, model, groups }: { source: Checkpoint; model: MoeModel; groups: readonly GroupPlan[] },
  solver: string,
  sourceFingerprint: string,
): ConfigChanges {
  const [first] = groups;
  if (!first) return {};
  const { bases, rank, activation } = first.problem;
  return nativeConfig(source.config, model.family, {
    bases,
    rank,
    activation,
    layers: [...new Set(groups.map(({ layer }) => layer))].sort((a, b) => a - b),
    projections: [...new Set(groups.map(({ projection }) => projection))].sort(),
    solver,
    sourceFingerprint,
  });
}
