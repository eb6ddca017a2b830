/** The renames that end a run. Written down before the first, so that what was cut short is finished by whoever comes next. */
import { dirname, join } from 'node:path';
import { type FileSystem, syncFolder } from '../file-system.js';
import { LOCK_FILE } from './folder-lock.js';
import { type CommitEntry, JOURNAL_FILE, PARTIAL_FOLDER } from './journal.js';

/**
 * Moves the files of a run out of its partial folder, those of an earlier result removed just before. Of both, the files
 * without which a loader sees nothing go first and come last. May be called again after it failed, or the process ended, anywhere.
 */
export async function moveFiles(folder: string, { files, last, replaces }: CommitEntry, fs: FileSystem): Promise<void> {
  const partial = join(folder, PARTIAL_FOLDER);
  const lastFirst = (names: readonly string[]): string[] =>
    [...names].sort((a, b) => Number(last.includes(b)) - Number(last.includes(a)));
  const waiting = new Set<string>();
  for (const file of files) if (await exists(join(partial, file), fs)) waiting.add(file);
  // Once a new file has its name, all old ones are gone; an old one of that name would be the new.
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

/** Empties a partial folder but for the lock; the journal goes last, so that a commit that is not quite over can be told. */
export async function clearPartial(folder: string, fs: FileSystem): Promise<void> {
  const partial = join(folder, PARTIAL_FOLDER);
  const names = (await fs.readdir(partial)).filter((name) => name !== LOCK_FILE && name !== JOURNAL_FILE);
  for (const name of [...names, JOURNAL_FILE]) await fs.remove(join(partial, name));
}
