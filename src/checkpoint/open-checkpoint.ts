/** Opens a Hugging Face checkpoint folder: config, index and shard headers. No tensor data is read. */
import { createHash } from 'node:crypto';
import { basename, resolve } from 'node:path';
import { NotACheckpointError, UnreadableFileError } from '../errors.js';
import { fileIn } from '../location.js';
import { LocalFiles, type SourceFolder } from '../sources/files.js';
import { CONFIG_FILE } from './file-names.js';
import type { TensorInfo } from './header.js';
import { openModelShards } from './model-shards.js';
import type { Shard } from './open-shard.js';
import { parseJsonObject, readText } from './read-json.js';
import { sideFileNotes } from './side-files.js';

export { CONFIG_FILE, INDEX_FILE, SINGLE_FILE } from './file-names.js';
export { HeaderMemory, openShard, type Shard } from './open-shard.js';
export { readJsonObject } from './read-json.js';

export interface Checkpoint extends SourceFolder {
  readonly config: Readonly<Record<string, unknown>>;
  /** The text of `config.json`. */
  readonly configText: string;
  /** The files of the model. The folder may have other safetensors files. */
  readonly shards: readonly Shard[];
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** Sentences on files that are not read or not copied, and on faults of the index. The caller shows them once. */
  readonly notes: readonly string[];
}

/**
 * Opens and validates a checkpoint as its loaders would. Throws an `InputError` that names the file and the problem. Faults that
 * loaders ignore do not throw; they are in `notes`.
 * @param source a local path, or a folder with an object that reads it (`openSource` takes URLs too)
 */
export async function openCheckpoint(source: string | SourceFolder): Promise<Checkpoint> {
  const { folder: root, files } =
    typeof source === 'string' ? { folder: resolve(source), files: new LocalFiles() } : source;
  try {
    const names = (await files.list(root)).map(({ path }) => path);
    const dangling = (await files.dangling?.(root)) ?? [];
    if (dangling.includes(CONFIG_FILE))
      throw new UnreadableFileError(fileIn(root, CONFIG_FILE), 'it is a link to nothing');
    if (!names.includes(CONFIG_FILE)) throw new NotACheckpointError(root, `it has no ${CONFIG_FILE}`);
    const configText = await readText(fileIn(root, CONFIG_FILE), files);
    const config = parseJsonObject(configText, fileIn(root, CONFIG_FILE));
    const { shards, tensors, notes } = await openModelShards({ root, names, dangling, files });
    const opened = { folder: root, files, config, configText, shards, tensors };
    return { ...opened, notes: [...notes, ...(await sideFileNotes(opened))] };
  } finally {
    await files.close();
  }
}

const FINGERPRINT_SAMPLES = 16;
const FINGERPRINT_SAMPLE_BYTES = 4096;

/**
 * Tells two checkpoints apart without reading them whole: SHA-256 over the config, every shard's name, size and header,
 * and 16 evenly spaced blocks of 4 KiB of each shard's data (the headers of a model and its fine-tunes are equal).
 * @returns 64 hexadecimal digits
 */
export const fingerprint = async (checkpoint: Checkpoint): Promise<string> => (await fingerprints(checkpoint)).whole;

export interface Fingerprints {
  /** `fingerprint`. */
  readonly whole: string;
  /** SHA-256 over the config and every shard's name, size and header, in hexadecimal. */
  readonly headers: string;
  /** For each shard, by file name: the first 32 hexadecimal digits of the SHA-256 over its blocks. */
  readonly contents: Readonly<Record<string, string>>;
}

/** Known fingerprints. Several parts of a run need them, and each would read the blocks again. */
const known = new WeakMap<Checkpoint, Promise<Fingerprints>>();

/** The fingerprint and its parts. */
export function fingerprints(checkpoint: Checkpoint): Promise<Fingerprints> {
  let found = known.get(checkpoint);
  if (!found) {
    found = readFingerprints(checkpoint);
    known.set(checkpoint, found);
    found.catch(() => known.delete(checkpoint)); // the caller gets the error; a later call tries again
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
      const starts = Array.from(
        { length: FINGERPRINT_SAMPLES },
        (_, i) => first + Math.floor(((bytes - first) * i) / FINGERPRINT_SAMPLES),
      );
      const blocks = await Promise.all(
        starts.map((start) =>
          files.readRange({ file: path, start, end: Math.min(bytes, start + FINGERPRINT_SAMPLE_BYTES) }),
        ),
      );
      for (const block of blocks) for (const hash of [whole, content]) hash.update(block);
      contents[basename(path)] = content.digest('hex').slice(0, 32);
    }
  } finally {
    await files.close();
  }
  return { whole: whole.digest('hex'), headers: headers.digest('hex'), contents };
}
