/** Checks of an output folder before anything is written to it. */
import { lstat, readdir, realpath, unlink } from 'node:fs/promises';
import { dirname, isAbsolute, join, relative, resolve } from 'node:path';
import { DiskTooSmallError, OutputInsideInputError, OutputNotEmptyError, OutputNotWritableError } from '../errors.js';
import { type FileSystem, nodeFileSystem } from '../file-system.js';
import { formatBytes } from '../format.js';
import { isPath } from '../location.js';
import { PARTIAL_FOLDER } from './journal.js';

/** Throws `OutputInsideInputError` if `output` lies in one of the local folders `inputs`. Symbolic links are resolved. */
export async function checkOutside(output: string, inputs: readonly string[]): Promise<void> {
  const real = await resolveExisting(output);
  for (const input of inputs.filter(isPath)) {
    const path = relative(await resolveExisting(input), real);
    if (path === '' || (!path.startsWith('..') && !isAbsolute(path))) throw new OutputInsideInputError(output, input);
  }
}

/** Resolves symbolic links in the part of the path that exists. */
async function resolveExisting(path: string): Promise<string> {
  const absolute = resolve(path);
  try {
    return await realpath(absolute);
  } catch {
    const parent = dirname(absolute);
    return parent === absolute ? absolute : join(await resolveExisting(parent), relative(parent, absolute));
  }
}

/**
 * The names in a folder, without the partial folder of an interrupted run. Returns undefined if there is no folder. Throws
 * `OutputNotWritableError` if it cannot be listed.
 */
export async function listOutput(folder: string): Promise<string[] | undefined> {
  try {
    return (await readdir(folder)).filter((name) => name !== PARTIAL_FOLDER);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return undefined;
    throw new OutputNotWritableError(folder, code === 'ENOTDIR' ? 'it is a file' : String(code));
  }
}

/** The error for a folder that holds files of others. @param forced whether the run may replace results */
export const notEmpty = (folder: string, held: readonly string[], forced?: boolean): OutputNotEmptyError =>
  new OutputNotEmptyError(folder, `is not empty (it holds ${held.slice(0, 3).join(', ')})`, forced);

/** The bytes of the files in a folder, without those in folders below it; 0 if there is none. */
export async function bytesIn(folder: string, fs: FileSystem): Promise<number> {
  let bytes = 0;
  for (const name of await fs.readdir(folder).catch(() => [])) bytes += (await fs.stat(join(folder, name))).size;
  return bytes;
}

/** Throws `DiskTooSmallError` if the disk of `folder`, which need not exist yet, has too little free space. */
export async function checkDisk(folder: string, neededBytes: number, fs: FileSystem = nodeFileSystem): Promise<void> {
  let existing = resolve(folder);
  for (;;) {
    try {
      const free = await fs.freeBytes(existing);
      if (free < neededBytes) throw new DiskTooSmallError(folder, formatBytes(neededBytes), formatBytes(free));
      return;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT' || dirname(existing) === existing) throw error;
      existing = dirname(existing);
    }
  }
}

/** Removes the partial folder and the folder itself if they are empty. */
export async function removeIfEmpty(folder: string, fs: FileSystem = nodeFileSystem): Promise<void> {
  await fs.rmdir(join(folder, PARTIAL_FOLDER)).catch(() => {});
  await fs.rmdir(folder).catch(() => {});
}

/** Removes a symbolic link in the place of the partial folder, so that nothing is written through it. */
export async function removeLink(path: string): Promise<void> {
  const entry = await lstat(path).catch(() => undefined);
  if (entry?.isSymbolicLink()) await unlink(path);
}
