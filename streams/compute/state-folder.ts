import { createHash } from 'node:crypto';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { type FileSystem, nodeFileSystem, readWhole, writeSynced } from '../../src/file-system.js';
import { type FolderLock, LOCK_FILE, lockFolder } from '../../src/output/folder-lock.js';
import { STATE_SUFFIX } from '../../src/output/unfinished-run.js';

/** A folder on this machine for the saved states of a run whose result is written to another machine. */
export interface StateFolder {
  readonly path: string;
  /**
   * Closes the folder, and removes it unless `keep` is true and it has states.
   * @returns whether states were kept
   */
  leave(keep: boolean): Promise<boolean>;
}

/** The folder on this machine for what a run needs whose result goes to an address. There is one for each address. */
export const workFolder = (url: string): string =>
  join(process.env.XDG_CACHE_HOME || join(homedir(), '.cache'), 'mobe', sha256(url).slice(0, 32));

/** Holds the hash of the run's identity. */
const OWNER_FILE = '.run';

/**
 * Opens the folder for a result's address. There is one folder for each address, so that a run replaces the states that an
 * earlier one left. Returns undefined if the folder cannot be made or another process uses it. Fits are then not saved, which
 * only costs time after an interruption.
 * @param identity of the run (JSON); states of other runs are removed
 * @param force also removes the states of the same run
 */
export async function openStateFolder(
  url: string,
  identity: unknown,
  force: boolean,
  fs: FileSystem = nodeFileSystem,
): Promise<StateFolder | undefined> {
  let lock: FolderLock | undefined;
  try {
    const path = workFolder(url);
    const held = await lockFolder(path, false, fs);
    lock = held;
    const run = new TextEncoder().encode(sha256(JSON.stringify(identity)));
    const owner = await readWhole(fs, join(path, OWNER_FILE), run.byteLength);
    if (force || !owner || Buffer.compare(owner, run) !== 0) {
      for (const name of await fs.readdir(path)) if (name !== LOCK_FILE) await fs.remove(join(path, name));
      await writeSynced(fs, join(path, OWNER_FILE), [run]);
    }
    return { path, leave: (keep) => leave(path, held, keep, fs) };
  } catch {
    await lock?.release().catch(() => {});
    return undefined;
  }
}

async function leave(path: string, lock: FolderLock, keep: boolean, fs: FileSystem): Promise<boolean> {
  const names = await fs.readdir(path).catch(() => []);
  const kept = keep && names.some((name) => name.endsWith(STATE_SUFFIX));
  if (!kept) await fs.remove(path).catch(() => {});
  await lock.release().catch(() => {});
  return kept;
}

const sha256 = (text: string): string => createHash('sha256').update(text).digest('hex');
