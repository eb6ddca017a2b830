/**
 * Allows one conversion in a folder at a time. The lock is a file that names its process. It becomes void when that process
 * ends, so it needs no clean-up after a crash. Whether a process on another machine still runs (on a shared disk) is unknown,
 * so its lock is respected.
 */
import { readFile } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join } from 'node:path';
import { FolderLockedError } from '../errors.js';
import { type FileSystem, readWhole, writeAll } from '../file-system.js';
import { removeLink } from './folder-checks.js';

export const LOCK_FILE = '.lock';

interface Holder {
  readonly pid: number;
  readonly host: string;
  /** When the process started, because process ids are reused; undefined if the system does not tell. */
  readonly started?: string | undefined;
  /** ISO 8601 */
  readonly since: string;
}

/** A lock that this process has. */
export interface FolderLock {
  release(): Promise<void>;
}

/** The most bytes of a lock file that are read. Real ones have about a hundred. */
const MAX_LOCK_BYTES = 64 * 1024;

/** How often another process may take the lock in between. */
const MOST_TRIES = 5;

/**
 * Takes the lock in `folder`. Creates the folder, and replaces a link in its place. Throws `FolderLockedError` if another
 * process has the lock.
 * @param force takes the lock even from another machine, but never from a running process of this machine
 */
export async function lockFolder(folder: string, force: boolean, fs: FileSystem): Promise<FolderLock> {
  await removeLink(folder);
  const path = join(folder, LOCK_FILE);
  const self: Holder = {
    pid: process.pid,
    host: hostname(),
    started: await processStart(process.pid),
    since: new Date().toISOString(),
  };
  for (let attempt = 0; attempt < MOST_TRIES; attempt++) {
    await fs.mkdir(folder);
    if (await createLock(path, self, fs)) return { release: () => fs.remove(path) };
    const found = await readWhole(fs, path, MAX_LOCK_BYTES);
    if (!found) continue; // released in the meantime
    const holder = parseHolder(found);
    if (holder) await checkVoid(folder, holder, self, force);
    await takeAway(path, found, fs);
  }
  throw new FolderLockedError(folder, 'by several processes at once', 'Wait for them.');
}

/** Throws `FolderLockedError` if another process has the lock in `folder`. @param force ignores locks of other machines */
export async function checkUnlocked(folder: string, force: boolean, fs: FileSystem): Promise<void> {
  const found = await readWhole(fs, join(folder, LOCK_FILE), MAX_LOCK_BYTES);
  const holder = found && parseHolder(found);
  if (holder) await checkVoid(folder, holder, { pid: process.pid, host: hostname(), since: '' }, force);
}

async function createLock(path: string, self: Holder, fs: FileSystem): Promise<boolean> {
  try {
    const file = await fs.open(path, 'wx');
    try {
      await writeAll(file, new TextEncoder().encode(JSON.stringify(self)), 0);
      await file.sync();
    } catch (error) {
      await fs.remove(path);
      throw error;
    } finally {
      await file.close();
    }
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'EEXIST') return false;
    throw error;
  }
  // A process that read the file while it was still empty took it for damaged and may have replaced it.
  const held = await readWhole(fs, path, MAX_LOCK_BYTES);
  return held !== undefined && parseHolder(held)?.since === self.since && parseHolder(held)?.pid === self.pid;
}

/** Removes the lock that was read. If the file is a newer lock, it is put back. */
async function takeAway(path: string, read: Uint8Array, fs: FileSystem): Promise<void> {
  const aside = `${path}.${process.pid}`;
  try {
    await fs.rename(path, aside);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return;
    throw error;
  }
  const taken = await readWhole(fs, aside, MAX_LOCK_BYTES);
  if (taken && Buffer.compare(taken, read) !== 0) await fs.rename(aside, path);
  else await fs.remove(aside);
}

/**
 * Returns undefined for an incomplete lock. Its process has ended, or is just writing it and will then notice that it was
 * removed.
 */
function parseHolder(bytes: Uint8Array): Holder | undefined {
  try {
    const holder = JSON.parse(new TextDecoder().decode(bytes));
    return Number.isSafeInteger(holder.pid) && typeof holder.host === 'string' ? holder : undefined;
  } catch {
    return undefined;
  }
}

async function checkVoid(folder: string, holder: Holder, self: Holder, force: boolean): Promise<void> {
  const { pid, host, started, since } = holder;
  const who = `by process ${pid} on ${host}, since ${since}`;
  if (host !== self.host) {
    if (force) return;
    throw new FolderLockedError(
      folder,
      who,
      'Whether it still runs cannot be seen from this machine: if it does not, run again with --force.',
    );
  }
  if (!(await isAlive(pid, started))) return;
  throw new FolderLockedError(folder, who, 'Wait for it, stop it, or choose another folder.');
}

async function isAlive(pid: number, started: string | undefined): Promise<boolean> {
  const now = await processStart(pid);
  if (now !== undefined && started !== undefined) return now === started;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM'; // it exists but belongs to another user
  }
}

/** On Linux: the boot id, and the clock ticks from boot to the process's start. Undefined on other systems. */
async function processStart(pid: number): Promise<string | undefined> {
  try {
    const [boot, stat] = await Promise.all([
      readFile('/proc/sys/kernel/random/boot_id', 'utf8'),
      readFile(`/proc/${pid}/stat`, 'utf8'),
    ]);
    // Field 2 is the program's name in parentheses and may contain any characters. Field 3 is the state, field 22 the start.
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return /[ZX]/.test(fields[0] as string) ? 'ended' : `${boot.trim()} ${fields[19]}`;
  } catch {
    return undefined;
  }
}
