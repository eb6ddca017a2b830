/** Selects a part of a checkpoint that is large enough to measure and small enough to copy. */
import { basename } from 'node:path';
import type { Checkpoint } from '../../src/checkpoint/open-checkpoint.js';
import { type ConversionPlan, planConversion } from '../../src/conversion/conversion-plan.js';
import { NotACheckpointError } from '../../src/errors.js';
import type { SampleOfModel } from './task.js';

/** A checkpoint with only the tensors that `keep` accepts. */
export function restrict(checkpoint: Checkpoint, keep: (tensor: string, shard: string) => boolean): Checkpoint {
  const shards = checkpoint.shards
    .map((shard) => ({ ...shard, tensors: shard.tensors.filter(({ name }) => keep(name, basename(shard.path))) }))
    .filter(({ tensors }) => tensors.length > 0);
  const tensors = new Map(shards.flatMap((shard) => shard.tensors.map((tensor) => [tensor.name, tensor] as const)));
  return { ...checkpoint, shards, tensors };
}

/** The first shards up to `limitBytes`, at least one. Throws a `NotACheckpointError` if they are empty. */
export function sampleModel(checkpoint: Checkpoint, limitBytes: number): SampleOfModel {
  const shards: string[] = [];
  let bytes = 0;
  for (const shard of checkpoint.shards) {
    if (shards.length > 0 && bytes + shard.bytes > limitBytes) break;
    shards.push(basename(shard.path));
    bytes += shard.bytes;
  }
  if (bytes === 0) throw new NotACheckpointError(checkpoint.folder, 'its shards are empty');
  return { folder: checkpoint.folder, shards, bytes };
}

/** A plan that copies the tensors of these shards without changes. */
export function planCopy(checkpoint: Checkpoint, shards: readonly string[]): ConversionPlan {
  const held = new Set(shards);
  const source = restrict(checkpoint, (_, shard) => held.has(shard));
  // The result's shards may be as large as the source's.
  const shardBytes = Math.max(
    ...source.shards.map(({ tensors }) => tensors.reduce((sum, t) => sum + t.end - t.start, 0)),
  );
  return planConversion({ source, groups: [], format: 'hf', shardBytes, keepQuantised: true });
}
