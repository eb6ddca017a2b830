/** Decides the place of each tensor, from names and sizes alone, before anything is written. */
import { encodeHeader, type TensorSpec } from '../checkpoint/header.js';
import { INDEX_FILE, SINGLE_FILE } from '../checkpoint/open-checkpoint.js';

/** A shard: its header, and the place of each tensor in it. */
export interface ShardLayout {
  readonly file: string;
  readonly tensors: readonly TensorSpec[];
  /** The encoded length field and header. */
  readonly header: Uint8Array;
  /** The size of the whole file. */
  readonly bytes: number;
}

/** The layout of all shards of a checkpoint. */
export interface Layout {
  readonly shards: readonly ShardLayout[];
  /** The bytes of all tensors, without headers: `total_size` of the index. */
  readonly tensorBytes: number;
}

/**
 * Fills shards in the given order, each with at most `shardBytes` of tensor data. A larger tensor gets a shard of its own. This
 * is the rule of transformers' `save_pretrained`.
 */
export function layoutShards(tensors: readonly TensorSpec[], shardBytes: number): Layout {
  const shards: TensorSpec[][] = [];
  let filled = 0;
  for (const tensor of tensors) {
    if (shards.length === 0 || filled + tensor.bytes > shardBytes) {
      shards.push([]);
      filled = 0;
    }
    (shards.at(-1) as TensorSpec[]).push(tensor);
    filled += tensor.bytes;
  }
  const count = shards.length;
  const layouts = shards.map((held, i) => layoutFile(count === 1 ? SINGLE_FILE : shardName(i + 1, count), held));
  return { shards: layouts, tensorBytes: tensors.reduce((sum, { bytes }) => sum + bytes, 0) };
}

/**
 * Lays out one safetensors file with these tensors in this order.
 * @param leastHeaderBytes the header is filled with spaces up to this size
 */
export function layoutFile(
  file: string,
  tensors: readonly TensorSpec[],
  metadata: Record<string, string> = {},
  leastHeaderBytes = 0,
): ShardLayout {
  const header = encodeHeader(tensors, metadata, leastHeaderBytes);
  return { file, tensors, header, bytes: tensors.reduce((sum, tensor) => sum + tensor.bytes, header.byteLength) };
}

const shardName = (number: number, count: number): string =>
  `model-${String(number).padStart(5, '0')}-of-${String(count).padStart(5, '0')}.safetensors`;

/** The name and text of the index file. Undefined for a single shard, which has no index. */
export function encodeIndex({ shards, tensorBytes }: Layout): { file: string; text: string } | undefined {
  if (shards.length === 1) return undefined;
  const placed = shards.flatMap(({ file, tensors }) => tensors.map(({ name }) => [name, file] as const));
  placed.sort(([a], [b]) => (a < b ? -1 : 1));
  const index = { metadata: { total_size: tensorBytes }, weight_map: Object.fromEntries(placed) };
  return { file: INDEX_FILE, text: `${JSON.stringify(index, null, 2)}\n` };
}
