/** Opens a Hugging Face checkpoint folder: config, index and shard headers. No tensor data is read. */
import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { NotACheckpointError, UnreadableFileError } from '../errors.js';
import { type Files, fileIn, LocalFiles, normaliseLocation } from '../sources/files.js';
import { CONFIG_FILE } from './file-names.js';
import type { TensorInfo } from './header.js';
import { openModelShards } from './model-shards.js';
import type { Shard } from './open-shard.js';
import { parseJsonObject, readText } from './read-json.js';
import { sideFileNotes } from './side-files.js';

export { CONFIG_FILE, INDEX_FILE, SINGLE_FILE } from './file-names.js';
export { openShard, type Shard } from './open-shard.js';
export { readJsonObject } from './read-json.js';

export interface Checkpoint {
  /** Absolute path, or a URL. */
  readonly folder: string;
  /** What reads it. */
  readonly files: Files;
  readonly config: Readonly<Record<string, unknown>>;
  /** `config.json` as it is written. */
  readonly configText: string;
  /** The files of the model, which need not be all safetensors files of the folder. */
  readonly shards: readonly Shard[];
  readonly tensors: ReadonlyMap<string, TensorInfo>;
  /** What of the folder is not read or not copied, and why: plain sentences, to be shown once. */
  readonly notes: readonly string[];
}

/**
 * Opens a checkpoint as its loaders would, and validates it. Throws an `InputError` that names what is wrong with which file; what
 * loaders overlook is told in `notes`.
 */
export async function openCheckpoint(folder: string, files: Files = new LocalFiles()): Promise<Checkpoint> {
  const root = normaliseLocation(folder);
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
