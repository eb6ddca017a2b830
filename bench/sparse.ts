/** Writes checkpoints of any number of tensors as sparse files. */

import { writeSparseCheckpoint } from '../fixtures/sparse-checkpoint.js';
import type { TensorSpec } from '../src/checkpoint/header.js';
import type { SampleOfModel } from '../streams/bench/task.js';

/** Size of a sparse checkpoint. */
export interface SparseModel {
  readonly tensors: number;
  /** Approximate total size of all tensors. */
  readonly bytes: number;
  readonly shards: number;
}

/** Names are as long as those of DeepSeek-V3's experts, so an index of 500 000 tensors has 60 MB. */
const tensorName = (i: number): string =>
  `model.layers.${Math.floor(i / 768)}.mlp.experts.${Math.floor((i % 768) / 3)}.${PROJECTIONS[i % 3]}.weight_of_a_tensor`;
const PROJECTIONS = ['gate_proj', 'up_proj', 'down_proj'] as const;

/** Writes a checkpoint of an unknown model. It can only be used for tasks that need no experts. */
export async function writeSparse(folder: string, { tensors, bytes, shards }: SparseModel): Promise<SampleOfModel> {
  const each = Math.max(2, 2 * Math.round(bytes / tensors / 2));
  const specs = Array.from({ length: tensors }, (_, i): TensorSpec => {
    return { name: tensorName(i), dtype: 'BF16', shape: [each / 2], bytes: each };
  });
  const layout = await writeSparseCheckpoint(folder, specs, each * Math.ceil(tensors / shards), { model_type: 'none' });
  return {
    folder,
    shards: layout.shards.map(({ file }) => file),
    bytes: layout.shards.reduce((sum, shard) => sum + shard.bytes, 0),
  };
}
