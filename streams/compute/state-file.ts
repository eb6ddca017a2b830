/**
 * Saves the state of a running fit in a safetensors file. Its metadata has the identity of the fit and a CRC-32. A save writes
 * a second file and then renames it, so that a crash leaves the old state or the new one.
 */
import { createHash } from 'node:crypto';
import { dirname, join } from 'node:path';
import { crc32 } from 'node:zlib';
import { encodeHeader, type TensorSpec } from '../../src/checkpoint/header.js';
import { openShard } from '../../src/checkpoint/open-checkpoint.js';
import { factorFileName } from '../../src/conversion/factor-files.js';
import { type GroupKey, groupLabel } from '../../src/conversion/group-plan.js';
import { type FileSystem, nodeFileSystem, syncFolder, writeSynced } from '../../src/file-system.js';
import type { FitState, StateStore } from '../../src/methods/method.js';
import { asWriteError } from '../../src/output/shard-writer.js';
import { STATE_SUFFIX } from '../../src/output/unfinished-run.js';
import { LocalFiles } from '../../src/sources/files.js';

/** The file in which a fit saves its state. */
export interface StateFile {
  readonly path: string;
  /** A hash of everything that decides the course of the fit. */
  readonly identity: string;
  /** The least time between two saves. */
  readonly everyMs: number;
  /** Bytes that the run still needs on the disk. A save leaves them free. */
  readonly reservedBytes: number;
  /** If true, failed saves are ignored. If false, a failed save ends the run, because the result is on the same disk. */
  readonly dispensable: boolean;
  /** The ending of the file that a save writes first. Processes that may save the same state have different ones. */
  readonly newSuffix: string;
}

/** The folder in which the fits of a run save their states. */
export interface StatePlace extends Omit<StateFile, 'path' | 'identity'> {
  readonly folder: string;
  /** The identity of the run (JSON). */
  readonly identity: unknown;
}

/** A crash loses at most about this much work, and saving this rarely costs little. */
const DEFAULT_SAVE_SECONDS = 120;

/** The time between two saves, in milliseconds. */
export const saveInterval = (seconds = DEFAULT_SAVE_SECONDS): number => 1000 * seconds;

/** Returns the state file of each group of a run. */
export function stateFiles({ folder, identity, ...rest }: StatePlace): (group: GroupKey) => StateFile {
  const run = JSON.stringify(identity);
  return (group) => ({
    ...rest,
    path: join(folder, stateFileName(group)),
    identity: createHash('sha256')
      .update(`${run}\n${groupLabel(group)}`)
      .digest('hex'),
  });
}

/** Removes the state of a group, when the group is finished. */
export async function removeState(folder: string, group: GroupKey, fs: FileSystem = nodeFileSystem): Promise<void> {
  const file = stateFileName(group);
  for (const name of await fs.readdir(folder))
    if (name === file || name.startsWith(`${file}.`)) await fs.remove(join(folder, name));
}

/** Saving takes at most about this share of the time, even on a slow disk. */
const SAVING_SHARE = 0.05;
/** A fit that is asked to stop first saves its state if it is at most this large, because that takes only a moment. */
const STOP_BYTES = 128 * 2 ** 20;

export const stateFileName = (group: GroupKey): string =>
  `.${factorFileName(group).replace(/\.safetensors$/, STATE_SUFFIX)}`;

/**
 * Loads and saves the state of a fit in `file`. Saving throws `WriteError`, unless the file is dispensable.
 * @param stopping returns whether the fit is asked to stop
 */
export function stateStore(
  { path, identity, everyMs, reservedBytes, dispensable, newSuffix }: StateFile,
  stopping: () => boolean,
  fs: FileSystem = nodeFileSystem,
): StateStore {
  let last = performance.now();
  let took = 0;
  return {
    load: () => loadState(path, identity, fs),
    due(bytes) {
      if (stopping()) return bytes <= STOP_BYTES;
      return performance.now() - last >= Math.max(everyMs, took / SAVING_SHARE);
    },
    async save(state) {
      const began = performance.now();
      try {
        await saveState({ path, identity, reservedBytes, newSuffix }, state, fs);
      } catch (error) {
        if (!dispensable) throw error;
      }
      last = performance.now();
      took = last - began;
    },
  };
}

/** Does nothing if the disk has no room for the state beside the result. */
async function saveState(
  { path, identity, reservedBytes, newSuffix }: Pick<StateFile, 'path' | 'identity' | 'reservedBytes' | 'newSuffix'>,
  state: FitState,
  fs: FileSystem,
): Promise<void> {
  const arrays = Object.entries(state);
  const bytes = arrays.reduce((sum, [, { byteLength }]) => sum + byteLength, 0);
  try {
    if ((await fs.freeBytes(dirname(path))) < bytes + reservedBytes) return;
    const tensors = arrays.map(([name, it]): TensorSpec => {
      const dtype = it instanceof Float64Array ? 'F64' : 'F32';
      return { name, dtype, shape: [it.length], bytes: it.byteLength };
    });
    const data = arrays.map(([, it]) => new Uint8Array(it.buffer, it.byteOffset, it.byteLength));
    const crc = data.reduce((sum, part) => crc32(part, sum), 0);
    const header = encodeHeader(tensors, { identity, crc: String(crc) });
    const temporary = `${path}${newSuffix}`;
    await writeSynced(fs, temporary, [header, ...data]);
    await fs.rename(temporary, path);
    await syncFolder(dirname(path), fs);
  } catch (error) {
    throw asWriteError(path, error);
  }
}

/** Returns undefined if there is no undamaged state of this fit. The fit then starts from the beginning. */
async function loadState(path: string, identity: string, fs: FileSystem): Promise<FitState | undefined> {
  const files = new LocalFiles(fs);
  try {
    const { tensors, metadata } = await openShard(path, files);
    if (metadata.identity !== identity) return undefined;
    const state: Record<string, Float32Array | Float64Array> = {};
    let crc = 0;
    for (const tensor of tensors) {
      const bytes = await files.readRange(tensor);
      crc = crc32(bytes, crc);
      state[tensor.name] = tensor.dtype === 'F64' ? new Float64Array(bytes.buffer) : new Float32Array(bytes.buffer);
    }
    return String(crc) === metadata.crc ? state : undefined;
  } catch {
    return undefined;
  } finally {
    await files.close();
  }
}
