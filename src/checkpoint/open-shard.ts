/** Opens one safetensors file by its header. No tensor data is read. */
import { LfsPointerError } from '../errors.js';
import type { Files } from '../sources/files.js';
import { LENGTH_BYTES, parseHeader, parseHeaderLength, type ShardHeader } from './header.js';
import { isLfsPointer, MAX_POINTER_BYTES } from './lfs-pointer.js';

export interface Shard extends ShardHeader {
  /** Absolute path, or a URL. */
  readonly path: string;
  readonly bytes: number;
}

/** Memory that is reused for one header after another. A header may have 50 MB, and V8 is slow to free memory outside its heap. */
export class HeaderMemory {
  private bytes = new Uint8Array(0);
  /** The names of the tensors of the last header. */
  names = new Set<string>();

  take(length: number): Uint8Array {
    // Pages that are never touched take no memory.
    if (this.bytes.byteLength < length) this.bytes = new Uint8Array(2 ** Math.ceil(Math.log2(length)));
    return this.bytes.subarray(0, length);
  }
}

/** Reads and validates the header of one safetensors file. */
export async function openShard(path: string, files: Files, memory = new HeaderMemory()): Promise<Shard> {
  const { json, bytes } = await readHeader(path, files, memory);
  memory.names = new Set();
  return { path, bytes, ...parseHeader(json, bytes, path, memory.names) };
}

async function readHeader(
  path: string,
  files: Files,
  memory: HeaderMemory,
): Promise<{ json: Uint8Array; bytes: number }> {
  const bytes = await files.size(path);
  if (bytes < MAX_POINTER_BYTES && isLfsPointer(await files.readRange({ file: path, start: 0, end: bytes })))
    throw new LfsPointerError(path);
  const prefix = new Uint8Array(Math.min(LENGTH_BYTES, bytes));
  await files.read(path, 0, prefix);
  const json = memory.take(parseHeaderLength(prefix, bytes, path));
  await files.read(path, LENGTH_BYTES, json);
  return { json, bytes };
}
