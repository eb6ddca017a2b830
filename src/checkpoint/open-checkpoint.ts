/** Opens a Hugging Face checkpoint folder: config, index and shard headers. No tensor data is read. */
import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import {
  DuplicateKeyError,
  ExtraShardError,
  InvalidJsonError,
  MissingShardError,
  NotACheckpointError,
  TensorNotInShardError,
  UnindexedTensorError,
  UnsafePathError,
} from '../errors.js';
import { duplicateKey } from './duplicate-key.js';
import { type Files, fileIn, LocalFiles, normaliseLocation } from './files.js';
import { LENGTH_BYTES, parseHeader, parseHeaderLength, type TensorInfo } from './header.js';
import { isDeeperThan } from './json-depth.js';
import { isPlainPath } from './plain-path.js';
import { parseSpan, parseString, type Span, scanObject, wholeText } from './scan-json.js';

export const INDEX_FILE = 'model.safetensors.index.json';
export const SINGLE_FILE = 'model.safetensors';
export const CONFIG_FILE = 'config.json';

/** Index files reach 60 MB, and a text can have 2^29 characters. */
const MAX_JSON_BYTES = 256 * 1024 * 1024;

/** Configs nest some six deep; what walks them does so by recursion. */
const MAX_JSON_DEPTH = 64;

export interface Shard {
  /** Absolute path, or a URL. */
  readonly path: string;
  readonly bytes: number;
  /** In the order of their data. */
  readonly tensors: readonly TensorInfo[];
}

export interface Checkpoint {
  /** Absolute path, or a URL. */
  readonly folder: string;
  /** What reads it. */
  readonly files: Files;
  readonly config: Readonly<Record<string, unknown>>;
  /** `config.json` as it is written. */
  readonly configText: string;
  readonly shards: readonly Shard[];
  readonly tensors: ReadonlyMap<string, TensorInfo>;
}

/** Opens and validates a checkpoint. Throws an `InputError` that names what is wrong with which file. */
export async function openCheckpoint(folder: string, files: Files = new LocalFiles()): Promise<Checkpoint> {
  const root = normaliseLocation(folder);
  try {
    const names = (await files.list(root)).map(({ path }) => path);
    if (!names.includes(CONFIG_FILE)) throw new NotACheckpointError(root, `it has no ${CONFIG_FILE}`);
    const configText = await readText(fileIn(root, CONFIG_FILE), files);
    const config = parseJsonObject(configText, fileIn(root, CONFIG_FILE));
    const shards = await openShards(root, names, files);
    const tensors = new Map<string, TensorInfo>();
    for (const shard of shards) for (const tensor of shard.tensors) tensors.set(tensor.name, tensor);
    return { folder: root, files, config, configText, shards, tensors };
  } finally {
    await files.close();
  }
}

async function openShards(root: string, names: readonly string[], files: Files): Promise<Shard[]> {
  const found = names.filter((name) => /^[^/]+\.safetensors$/.test(name));
  if (!names.includes(INDEX_FILE)) {
    if (found.length === 0) throw new NotACheckpointError(root, 'it has no *.safetensors file');
    if (found.length > 1)
      throw new NotACheckpointError(root, `it has ${found.length} *.safetensors files but no ${INDEX_FILE}`);
    return [await openShard(fileIn(root, found[0] as string), files)];
  }
  const placed = await readIndex(fileIn(root, INDEX_FILE), files);
  for (const [file, tensors] of placed) {
    if (!found.includes(file)) throw new MissingShardError(fileIn(root, file), tensors.length);
  }
  const shards: Shard[] = [];
  for (const file of found) {
    const expected = placed.get(file);
    if (!expected) throw new ExtraShardError(fileIn(root, file));
    const shard = await openShard(fileIn(root, file), files);
    checkAgainstIndex(shard, expected);
    placed.delete(file); // names of half a million tensors are some 50 MB
    shards.push(shard);
  }
  return shards;
}

/** Reads and validates the header of one safetensors file. */
export async function openShard(path: string, files: Files): Promise<Shard> {
  const { json, bytes } = await readHeader(path, files);
  return { path, bytes, tensors: parseHeader(json, bytes, path) };
}

/** The `__metadata__` of a safetensors file; empty where it has none. */
export async function readMetadata(path: string, files: Files): Promise<Record<string, string>> {
  const { json, bytes } = await readHeader(path, files);
  parseHeader(json, bytes, path);
  return JSON.parse(new TextDecoder().decode(json)).__metadata__ ?? {};
}

async function readHeader(path: string, files: Files): Promise<{ json: Uint8Array; bytes: number }> {
  const bytes = await files.size(path);
  const prefix = new Uint8Array(Math.min(LENGTH_BYTES, bytes));
  await files.read(path, 0, prefix);
  const json = new Uint8Array(parseHeaderLength(prefix, bytes, path));
  await files.read(path, LENGTH_BYTES, json);
  return { json, bytes };
}

/** A whole file of JSON, which is refused before it is read where it is larger than any real one. */
async function readBytes(path: string, files: Files): Promise<Uint8Array<ArrayBuffer>> {
  const end = await files.size(path);
  if (end > MAX_JSON_BYTES) throw new InvalidJsonError(path, `it has ${end} bytes, the limit is ${MAX_JSON_BYTES}`);
  return files.readRange({ file: path, start: 0, end });
}

/** A whole text file. */
async function readText(path: string, files: Files): Promise<string> {
  return new TextDecoder().decode(await readBytes(path, files));
}

/** shard file → the tensors the index places in it */
async function readIndex(path: string, files: Files): Promise<Map<string, string[]>> {
  const json = Buffer.from((await readBytes(path, files)).buffer);
  let placed: Map<string, string[]> | undefined;
  const keys = new Set<string>();
  try {
    scanObject(json, wholeText(json), (key, span) => {
      if (keys.size === keys.add(key).size) throw new DuplicateKeyError(path, key);
      if (key === 'weight_map' && json[span.start] === 0x7b) placed = readWeightMap(json, span, path);
      else parseJson(json.toString('utf8', span.start, span.end), path);
    });
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new InvalidJsonError(path, `not JSON (${error.message})`);
  }
  if (!placed) throw new InvalidJsonError(path, 'it has no "weight_map" object');
  return placed;
}

function readWeightMap(json: Buffer, within: Span, path: string): Map<string, string[]> {
  const placed = new Map<string, string[]>();
  const names = new Set<string>();
  scanObject(json, within, (tensor, span) => {
    if (names.size === names.add(tensor).size) throw new DuplicateKeyError(path, tensor);
    const file = json[span.start] === 0x22 ? parseString(json, span) : parseSpan(json, span);
    if (typeof file !== 'string') throw new InvalidJsonError(path, `"weight_map" places "${tensor}" in no file`);
    const tensors = placed.get(file);
    if (tensors) {
      tensors.push(tensor);
      return;
    }
    if (basename(file) !== file || !isPlainPath(file)) throw new UnsafePathError(path, file);
    placed.set(file, [tensor]);
  });
  return placed;
}

function checkAgainstIndex(shard: Shard, expected: readonly string[]): void {
  const held = new Set(shard.tensors.map(({ name }) => name));
  for (const name of expected) if (!held.delete(name)) throw new TensorNotInShardError(name, shard.path);
  for (const name of held) throw new UnindexedTensorError(name, shard.path);
}

/** Reads a JSON object, refusing duplicate keys. */
export async function readJsonObject(path: string, files: Files): Promise<Record<string, unknown>> {
  return parseJsonObject(await readText(path, files), path);
}

function parseJsonObject(text: string, path: string): Record<string, unknown> {
  const value = parseJson(text, path);
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new InvalidJsonError(path, 'not a JSON object');
  return value as Record<string, unknown>;
}

function parseJson(text: string, path: string): unknown {
  if (isDeeperThan(MAX_JSON_DEPTH, text)) throw new InvalidJsonError(path, `it nests deeper than ${MAX_JSON_DEPTH}`);
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    throw new InvalidJsonError(path, `not JSON (${(error as Error).message})`);
  }
  const duplicate = duplicateKey(text);
  if (duplicate !== undefined) throw new DuplicateKeyError(path, duplicate);
  return value;
}

const FINGERPRINT_SAMPLES = 16;
const FINGERPRINT_SAMPLE_BYTES = 4096;

/**
 * Tells two checkpoints apart without reading them whole: SHA-256 over the config, every shard's name, size and header,
 * and 16 evenly spaced blocks of 4 KiB of each shard's data (fine-tunes of a model differ nowhere in their headers).
 * @returns 64 hexadecimal digits
 */
export async function fingerprint({ config, shards, files }: Checkpoint): Promise<string> {
  const hash = createHash('sha256').update(JSON.stringify(config));
  try {
    for (const { path, bytes, tensors } of shards) {
      hash.update(`${basename(path)} ${bytes}`);
      for (const { name, dtype, shape, start } of tensors) hash.update(`${name} ${dtype} ${shape} ${start}`);
      const first = tensors[0]?.start ?? bytes;
      for (let i = 0; i < FINGERPRINT_SAMPLES; i++) {
        const start = first + Math.floor(((bytes - first) * i) / FINGERPRINT_SAMPLES);
        hash.update(
          await files.readRange({ file: path, start, end: Math.min(bytes, start + FINGERPRINT_SAMPLE_BYTES) }),
        );
      }
    }
  } finally {
    await files.close();
  }
  return hash.digest('hex');
}
