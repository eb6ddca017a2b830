/** Which tensor goes where: decided once, from names and sizes alone, before a byte is written. */
import { encodeHeader, type TensorSpec } from '../checkpoint/header.js';
import { INDEX_FILE, SINGLE_FILE } from '../checkpoint/open-checkpoint.js';

/** A shard: its header, and the place of each tensor in it. */
export interface ShardLayout {
  readonly file: string;
  readonly tensors: readonly TensorSpec[];
  /** Length field and header, as they are written. */
  readonly header: Uint8Array;
  /** Of the whole file. */
  readonly bytes: number;
}

/** The shards of an output. */
export interface Layout {
  readonly shards: readonly ShardLayout[];
  /** Sum of all tensors' bytes, without headers: the index's `total_size`. */
  readonly tensorBytes: number;
}

/**
 * Fills shards greedily in the order given, none with more than `shardBytes` of tensor data, except that a tensor larger
 * than that stands alone (as transformers' `save_pretrained` does).
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

/** One safetensors file holding these tensors in this order. */
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

/** The index file's name and text, or undefined for a single shard, which has none. */
export function encodeIndex({ shards, tensorBytes }: Layout): { file: string; text: string } | undefined {
  if (shards.length === 1) return undefined;
  const placed = shards.flatMap(({ file, tensors }) => tensors.map(({ name }) => [name, file] as const));
  placed.sort(([a], [b]) => (a < b ? -1 : 1));
  const index = { metadata: { total_size: tensorBytes }, weight_map: Object.fromEntries(placed) };
  return { file: INDEX_FILE, text: `${JSON.stringify(index, null, 2)}\n` };
}
