/** Opens a Hugging Face checkpoint folder: config, index and shard headers. No tensor data is read. */
import { createHash } from 'node:crypto';
import { open, readdir, readFile } from 'node:fs/promises';
import { basename, join, resolve } from 'node:path';
import {
  DuplicateKeyError,
  ExtraShardError,
  InvalidHeaderError,
  InvalidJsonError,
  MissingShardError,
  NotACheckpointError,
  TensorNotInShardError,
  UnindexedTensorError,
  UnsafePathError,
} from '../errors.js';
import { duplicateKey } from './duplicate-key.js';
import { LENGTH_BYTES, parseHeader, parseHeaderLength, type TensorInfo } from './header.js';

export const INDEX_FILE = 'model.safetensors.index.json';
export const SINGLE_FILE = 'model.safetensors';
export const CONFIG_FILE = 'config.json';

export interface Shard {
  /** Absolute path. */
  readonly path: string;
  readonly bytes: number;
  /** In the order of their data. */
  readonly tensors: readonly TensorInfo[];
}

export interface Checkpoint {
  /** Absolute path. */
  readonly folder: string;
  readonly config: Readonly<Record<string, unknown>>;
  /** `config.json` as it is written. */
  readonly configText: string;
  readonly shards: readonly Shard[];
  readonly tensors: ReadonlyMap<string, TensorInfo>;
}

/** Opens and validates a checkpoint. Throws an `InputError` that names what is wrong with which file. */
export async function openCheckpoint(folder: string): Promise<Checkpoint> {
  const root = resolve(folder);
  const names = await listFolder(root);
  if (!names.includes(CONFIG_FILE)) throw new NotACheckpointError(root, `it has no ${CONFIG_FILE}`);
  const configText = await readFile(join(root, CONFIG_FILE), 'utf8');
  const config = parseJsonObject(configText, join(root, CONFIG_FILE));
  const files = names.filter((name) => name.endsWith('.safetensors')).sort();
  const shards: Shard[] = [];
  if (names.includes(INDEX_FILE)) {
    const placed = await readIndex(join(root, INDEX_FILE));
    for (const [file, tensors] of placed) {
      if (!files.includes(file)) throw new MissingShardError(join(root, file), tensors.length);
    }
    for (const file of files) {
      const expected = placed.get(file);
      if (!expected) throw new ExtraShardError(join(root, file));
      const shard = await openShard(join(root, file));
      checkAgainstIndex(shard, expected);
      shards.push(shard);
    }
  } else {
    if (files.length === 0) throw new NotACheckpointError(root, 'it has no *.safetensors file');
    if (files.length > 1)
      throw new NotACheckpointError(root, `it has ${files.length} *.safetensors files but no ${INDEX_FILE}`);
    shards.push(await openShard(join(root, files[0] as string)));
  }
  const tensors = new Map(shards.flatMap((shard) => shard.tensors.map((tensor) => [tensor.name, tensor] as const)));
  return { folder: root, config, configText, shards, tensors };
}

/** Reads and validates the header of one safetensors file. */
export async function openShard(path: string): Promise<Shard> {
  const { json, bytes } = await readHeader(path);
  return { path, bytes, tensors: parseHeader(json, bytes, path) };
}

/** The `__metadata__` of a safetensors file; empty where it has none. */
export async function readMetadata(path: string): Promise<Record<string, string>> {
  const { json, bytes } = await readHeader(path);
  parseHeader(json, bytes, path);
  return JSON.parse(new TextDecoder().decode(json)).__metadata__ ?? {};
}

async function readHeader(path: string): Promise<{ json: Uint8Array; bytes: number }> {
  const handle = await open(path);
  try {
    const { size: bytes } = await handle.stat();
    const prefix = Buffer.alloc(LENGTH_BYTES);
    const { bytesRead } = await handle.read(prefix, 0, LENGTH_BYTES, 0);
    const length = parseHeaderLength(prefix.subarray(0, bytesRead), bytes, path);
    const json = Buffer.alloc(length);
    const { bytesRead: headerRead } = await handle.read(json, 0, length, LENGTH_BYTES);
    if (headerRead !== length) throw new InvalidHeaderError(path, 'the header could not be read whole');
    return { json, bytes };
  } finally {
    await handle.close();
  }
}

/** shard file → the tensors the index places in it */
async function readIndex(path: string): Promise<Map<string, string[]>> {
  const { weight_map: weightMap } = await readJsonObject(path);
  if (typeof weightMap !== 'object' || weightMap === null || Array.isArray(weightMap)) {
    throw new InvalidJsonError(path, 'it has no "weight_map" object');
  }
  const placed = new Map<string, string[]>();
  for (const [tensor, file] of Object.entries(weightMap)) {
    if (typeof file !== 'string') throw new InvalidJsonError(path, `"weight_map" places "${tensor}" in no file`);
    if (basename(file) !== file || file === '' || file === '..' || file.includes('\\'))
      throw new UnsafePathError(path, file);
    const tensors = placed.get(file);
    if (tensors) tensors.push(tensor);
    else placed.set(file, [tensor]);
  }
  return placed;
}

function checkAgainstIndex(shard: Shard, expected: readonly string[]): void {
  const held = new Set(shard.tensors.map(({ name }) => name));
  for (const name of expected) if (!held.delete(name)) throw new TensorNotInShardError(name, shard.path);
  for (const name of held) throw new UnindexedTensorError(name, shard.path);
}

async function listFolder(root: string): Promise<string[]> {
  try {
    return await readdir(root);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const reason = code === 'ENOENT' ? 'there is no such folder' : code === 'ENOTDIR' ? 'it is a file' : String(code);
    throw new NotACheckpointError(root, reason);
  }
}

/** Reads a JSON object, refusing duplicate keys. */
export async function readJsonObject(path: string): Promise<Record<string, unknown>> {
  return parseJsonObject(await readFile(path, 'utf8'), path);
}

function parseJsonObject(text: string, path: string): Record<string, unknown> {
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new InvalidJsonError(path, `not JSON (${(error as Error).message})`);
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new InvalidJsonError(path, 'not a JSON object');
  const duplicate = duplicateKey(text);
  if (duplicate !== undefined) throw new DuplicateKeyError(path, duplicate);
  return value as Record<string, unknown>;
}

const FINGERPRINT_SAMPLES = 16;
const FINGERPRINT_SAMPLE_BYTES = 4096;

/**
 * Tells two checkpoints apart without reading them whole: SHA-256 over the config, every shard's name, size and header,
 * and 16 evenly spaced blocks of 4 KiB of each shard's data (fine-tunes of a model differ nowhere in their headers).
 * @returns 64 hexadecimal digits
 */
export async function fingerprint(checkpoint: Checkpoint): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify(checkpoint.config));
  const block = Buffer.alloc(FINGERPRINT_SAMPLE_BYTES);
  for (const shard of checkpoint.shards) {
    hash.update(`${basename(shard.path)} ${shard.bytes}`);
    for (const { name, dtype, shape, start } of shard.tensors) hash.update(`${name} ${dtype} ${shape} ${start}`);
    const handle = await open(shard.path);
    try {
      const first = shard.tensors[0]?.start ?? shard.bytes;
      for (let i = 0; i < FINGERPRINT_SAMPLES; i++) {
        const position = first + Math.floor(((shard.bytes - first) * i) / FINGERPRINT_SAMPLES);
        const { bytesRead } = await handle.read(block, 0, block.byteLength, position);
        hash.update(block.subarray(0, bytesRead));
      }
    } finally {
      await handle.close();
    }
  }
  return hash.digest('hex');
}
