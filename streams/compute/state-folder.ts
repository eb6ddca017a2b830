import { createHash } from 'node:crypto';
import { homedir } from 'node:os';
import { join } from 'node:path';
import { type FileSystem, nodeFileSystem, readWhole, writeSynced } from '../../src/file-system.js';
import { type FolderLock, LOCK_FILE, lockFolder } from '../../src/output/folder-lock.js';
import { STATE_SUFFIX } from '../../src/output/unfinished-run.js';

/** Where this machine's user keeps the states of a run whose result is written elsewhere. */
export interface StateFolder {
  readonly path: string;
  /** @returns whether it was left, with states in it, as `keep` wishes */
  leave(keep: boolean): Promise<boolean>;
}

/** Says whose states there are. */
const OWNER_FILE = '.run';

/**
 * One folder an address, so that what a run has left is replaced by the next. Undefined where there is no place for it, or where
 * another process has it: fits are then not saved, which costs time only.
 * @param identity of the run, JSON; states of another are removed
 * @param force removes those of the same
 */
export async function openStateFolder(
  url: string,
  identity: unknown,
  force: boolean,
  fs: FileSystem = nodeFileSystem,
): Promise<StateFolder | undefined> {
  let lock: FolderLock | undefined;
  try {
    const cache = process.env.XDG_CACHE_HOME || join(homedir(), '.cache');
    const path = join(cache, 'mobe', sha256(url).slice(0, 32));
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
