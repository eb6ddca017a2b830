/** What is asked of an output folder before anything is written to it. */
import { lstat, readdir, realpath, unlink } from 'node:fs/promises';
import { dirname, isAbsolute, join, relative, resolve } from 'node:path';
import { DiskTooSmallError, OutputInsideInputError, OutputNotWritableError } from '../errors.js';
import { type FileSystem, nodeFileSystem } from '../file-system.js';
import { formatBytes } from '../format.js';
import { isPath } from '../location.js';
import { PARTIAL_FOLDER } from './journal.js';

/** Throws unless `output` lies outside every one of `inputs` that is a path of this machine, symbolic links resolved. */
export async function checkOutside(output: string, inputs: readonly string[]): Promise<void> {
  const real = await resolveExisting(output);
  for (const input of inputs.filter(isPath)) {
    const path = relative(await resolveExisting(input), real);
    if (path === '' || (!path.startsWith('..') && !isAbsolute(path))) throw new OutputInsideInputError(output, input);
  }
}

/** The path with symbolic links resolved as far as it exists. */
async function resolveExisting(path: string): Promise<string> {
  const absolute = resolve(path);
  try {
    return await realpath(absolute);
  } catch {
    const parent = dirname(absolute);
    return parent === absolute ? absolute : join(await resolveExisting(parent), relative(parent, absolute));
  }
}

/** What a folder holds, the leftovers of an interrupted run aside; undefined where there is no folder. */
export async function listOutput(folder: string): Promise<string[] | undefined> {
  try {
    return (await readdir(folder)).filter((name) => name !== PARTIAL_FOLDER);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT') return undefined;
    throw new OutputNotWritableError(folder, code === 'ENOTDIR' ? 'it is a file' : String(code));
  }
}

/** Throws unless the disk that holds `folder`, or will, has room. */
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

/** The partial folder, and the folder itself where this run has created it. */
export async function removeIfEmpty(folder: string, fs: FileSystem = nodeFileSystem): Promise<void> {
  await fs.rmdir(join(folder, PARTIAL_FOLDER)).catch(() => {});
  await fs.rmdir(folder).catch(() => {});
}

/** A link in the place of a folder of ours is removed: nothing is written through it. */
export async function removeLink(path: string): Promise<void> {
  const entry = await lstat(path).catch(() => undefined);
  if (entry?.isSymbolicLink()) await unlink(path);
}
