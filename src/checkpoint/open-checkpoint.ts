/** Opens a Hugging Face checkpoint folder: config, index and shard headers. No tensor data is read. */
import { createHash } from 'node:crypto';
import { basename, resolve } from 'node:path';
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
import { fileIn } from '../location.js';
import { type Files, LocalFiles, type SourceFolder } from '../sources/files.js';
import { duplicateKey } from './duplicate-key.js';
import { LENGTH_BYTES, parseHeader, parseHeaderLength, type ShardHeader, type TensorInfo } from './header.js';
import { isDeeperThan } from './json-depth.js';
import { isPlainPath } from './plain-path.js';
import { parseSpan, parseString, type Span, scanObject, stringAt, wholeText } from './scan-json.js';

export const INDEX_FILE = 'model.safetensors.index.json';
export const SINGLE_FILE = 'model.safetensors';
export const CONFIG_FILE = 'config.json';

/** Index files reach 60 MB, and a text can have 2^29 characters. */
const MAX_JSON_BYTES = 256 * 1024 * 1024;

/** Configs nest some six deep; what walks them does so by recursion. */
const MAX_JSON_DEPTH = 64;

export interface Shard extends ShardHeader {
  /** Absolute path, or a URL. */
  readonly path: string;
  readonly bytes: number;
}

export interface Checkpoint extends SourceFolder {
  readonly config: Readonly<Record<string, unknown>>;
  /** `config.json` as it is written. */
  readonly configText: string;
  readonly shards: readonly Shard[];
  readonly tensors: ReadonlyMap<string, TensorInfo>;
}

/**
 * Opens and validates a checkpoint. Throws an `InputError` that names what is wrong with which file.
 * @param source a path of this machine, or any folder with what reads it (`openSource` takes URLs too)
 */
export async function openCheckpoint(source: string | SourceFolder): Promise<Checkpoint> {
  const { folder: root, files } =
    typeof source === 'string' ? { folder: resolve(source), files: new LocalFiles() } : source;
  try {
    const names = (await files.list(root)).map(({ path }) => path);
    if (!names.includes(CONFIG_FILE)) throw new NotACheckpointError(root, `it has no ${CONFIG_FILE}`);
    const configText = await readText(fileIn(root, CONFIG_FILE), files);
    const config = parseJsonObject(configText, fileIn(root, CONFIG_FILE));
    const shards = await openShards(root, names, files);
    const tensors = new Map<string, TensorInfo>();
    for (const shard of shards) {
      for (const tensor of shard.tensors) {
        // Of two shards that hold a tensor, an index can name both only by a key it has twice.
        if (tensors.has(tensor.name)) throw new DuplicateKeyError(fileIn(root, INDEX_FILE), tensor.name);
        tensors.set(tensor.name, tensor);
      }
    }
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
  const index = await readIndex(fileIn(root, INDEX_FILE), files);
  for (const [file, tensors] of index.placed) {
    if (!found.includes(file)) throw new MissingShardError(fileIn(root, file), tensors.length);
  }
  const shards: Shard[] = [];
  const memory = new HeaderMemory();
  for (const file of found) {
    const expected = index.placed.get(file);
    if (!expected) throw new ExtraShardError(fileIn(root, file));
    const shard = await openShard(fileIn(root, file), files, memory);
    checkAgainstIndex(shard, memory.names, expected, index);
    index.placed.delete(file);
    shards.push(shard);
  }
  return shards;
}

/** For one header after another. Each may have some 50 MB, and V8 is in no hurry to collect what lies outside its heap. */
class HeaderMemory {
  private bytes = new Uint8Array(0);
  /** Of the tensors of the last header. */
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
  const prefix = new Uint8Array(Math.min(LENGTH_BYTES, bytes));
  await files.read(path, 0, prefix);
  const json = memory.take(parseHeaderLength(prefix, bytes, path));
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

interface Index {
  readonly path: string;
  readonly json: Buffer;
  /** Shard file → where in the text the names of its tensors begin. Names themselves, of half a million, are some 50 MB. */
  readonly placed: Map<string, number[]>;
}

async function readIndex(path: string, files: Files): Promise<Index> {
  const json = Buffer.from((await readBytes(path, files)).buffer);
  let placed: Index['placed'] | undefined;
  const keys = new Set<string>();
  try {
    scanObject(json, wholeText(json), (keySpan, span) => {
      const key = parseString(json, keySpan);
      if (keys.size === keys.add(key).size) throw new DuplicateKeyError(path, key);
      if (key === 'weight_map' && json[span.start] === 0x7b) placed = readWeightMap(json, span, path);
      else parseJson(json.toString('utf8', span.start, span.end), path);
    });
  } catch (error) {
    throw notJson(path, error);
  }
  if (!placed) throw new InvalidJsonError(path, 'it has no "weight_map" object');
  return { path, json, placed };
}

function readWeightMap(json: Buffer, within: Span, path: string): Index['placed'] {
  const placed = new Map<string, number[]>();
  scanObject(json, within, (key, span) => {
    const file = json[span.start] === 0x22 ? parseString(json, span) : parseSpan(json, span);
    if (typeof file !== 'string')
      throw new InvalidJsonError(path, `"weight_map" places "${parseString(json, key)}" in no file`);
    const tensors = placed.get(file);
    if (tensors) {
      tensors.push(key.start);
      return;
    }
    if (basename(file) !== file || !isPlainPath(file)) throw new UnsafePathError(path, file);
    placed.set(file, [key.start]);
  });
  return placed;
}

/** @param held the names of its tensors, of which none are left afterwards */
function checkAgainstIndex(
  { path, tensors }: Shard,
  held: Set<string>,
  expected: readonly number[],
  { json, path: index }: Index,
): void {
  for (const start of expected) {
    const name = indexedName(index, json, start);
    if (held.delete(name)) continue;
    throw tensors.some((it) => it.name === name)
      ? new DuplicateKeyError(index, name)
      : new TensorNotInShardError(name, path);
  }
  for (const name of held) throw new UnindexedTensorError(name, path);
}

function indexedName(path: string, json: Buffer, start: number): string {
  try {
    return parseString(json, stringAt(json, start));
  } catch (error) {
    throw notJson(path, error);
  }
}

const notJson = (path: string, error: unknown): unknown =>
  error instanceof SyntaxError ? new InvalidJsonError(path, `not JSON (${error.message})`) : error;

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
export const fingerprint = async (checkpoint: Checkpoint): Promise<string> => (await fingerprints(checkpoint)).whole;

export interface Fingerprints {
  /** `fingerprint`. */
  readonly whole: string;
  /** SHA-256 over the config and every shard's name, size and header, in hexadecimal. */
  readonly headers: string;
  /** Of each shard, by file name: the first 32 hexadecimal digits of the SHA-256 over its blocks. */
  readonly contents: Readonly<Record<string, string>>;
}

/** Several parts of a run ask for them, and each would read the blocks again. */
const known = new WeakMap<Checkpoint, Promise<Fingerprints>>();

/** The fingerprint and its parts. */
export function fingerprints(checkpoint: Checkpoint): Promise<Fingerprints> {
  let found = known.get(checkpoint);
  if (!found) {
    found = readFingerprints(checkpoint);
    known.set(checkpoint, found);
    found.catch(() => known.delete(checkpoint)); // told by whoever waits for it; the next may have more luck
  }
  return found;
}

async function readFingerprints({ config, shards, files }: Checkpoint): Promise<Fingerprints> {
  const whole = createHash('sha256').update(JSON.stringify(config));
  const headers = whole.copy();
  const contents: Record<string, string> = {};
  try {
    for (const { path, bytes, tensors } of shards) {
      const content = createHash('sha256');
      for (const hash of [whole, headers]) {
        hash.update(`${basename(path)} ${bytes}`);
        for (const { name, dtype, shape, start } of tensors) hash.update(`${name} ${dtype} ${shape} ${start}`);
      }
      const first = tensors[0]?.start ?? bytes;
      for (let i = 0; i < FINGERPRINT_SAMPLES; i++) {
        const start = first + Math.floor(((bytes - first) * i) / FINGERPRINT_SAMPLES);
        const end = Math.min(bytes, start + FINGERPRINT_SAMPLE_BYTES);
        const block = await files.readRange({ file: path, start, end });
        for (const hash of [whole, content]) hash.update(block);
      }
      contents[basename(path)] = content.digest('hex').slice(0, 32);
    }
  } finally {
    await files.close();
  }
  return { whole: whole.digest('hex'), headers: headers.digest('hex'), contents };
}
