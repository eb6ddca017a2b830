/**
 * The renames that end a run. The journal lists them before the first rename, so that the next run can complete them after a
 * crash.
 */
import { dirname, join } from 'node:path';
import { type FileSystem, syncFolder } from '../file-system.js';
import { LOCK_FILE } from './folder-lock.js';
import { type CommitEntry, JOURNAL_FILE, PARTIAL_FOLDER } from './journal.js';

/**
 * Removes the files of an earlier result, then moves the files of the run out of its partial folder. The files in `last`,
 * without which a loader sees nothing, are removed first and moved last. After a failure or crash at any point, it can be
 * called again.
 */
export async function moveFiles(folder: string, { files, last, replaces }: CommitEntry, fs: FileSystem): Promise<void> {
  const partial = join(folder, PARTIAL_FOLDER);
  const lastFirst = (names: readonly string[]): string[] =>
    [...names].sort((a, b) => Number(last.includes(b)) - Number(last.includes(a)));
  const waiting = new Set<string>();
  for (const file of files) if (await exists(join(partial, file), fs)) waiting.add(file);
  // If a new file already has its final name, the old files are already gone, and removing them by name would remove new files.
  if (waiting.size === files.length) for (const file of lastFirst(replaces)) await fs.remove(join(folder, file));
  let synced = false;
  for (const file of lastFirst(files).reverse()) {
    if (!waiting.has(file)) continue;
    if (last.includes(file) && !synced) {
      await syncFolder(folder, fs);
      synced = true;
    }
    await fs.mkdir(dirname(join(folder, file)));
    await fs.rename(join(partial, file), join(folder, file));
  }
  await syncFolder(folder, fs);
}

async function exists(path: string, fs: FileSystem): Promise<boolean> {
  try {
    await fs.stat(path);
    return true;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return false;
    throw error;
  }
}

/**
 * Removes everything in a partial folder except the lock. The journal is removed last, so that an unfinished commit can be
 * recognised.
 */
export async function clearPartial(folder: string, fs: FileSystem): Promise<void> {
  const partial = join(folder, PARTIAL_FOLDER);
  const names = (await fs.readdir(partial)).filter((name) => name !== LOCK_FILE && name !== JOURNAL_FILE);
  for (const name of [...names, JOURNAL_FILE]) await fs.remove(join(partial, name));
}
