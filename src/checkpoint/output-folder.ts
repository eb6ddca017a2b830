/**
 * A folder that is filled all at once or not at all. Everything is written in `<folder>/.mobe-partial/`; `commit` moves
 * it out under the final names once every byte is on disk, the files that make it loadable (index, config) last.
 */
import { type FileHandle, mkdir, open, readdir, realpath, rename, rm, statfs, writeFile, copyFile } from 'node:fs/promises';
import { constants } from 'node:fs';
import { dirname, join, relative, resolve, isAbsolute } from 'node:path';
import {
  DiskTooSmallError,
  IncompleteOutputError,
  OutputInsideInputError,
  OutputNotEmptyError,
  OutputNotWritableError,
  WriteError,
} from '../errors.js';
import { formatBytes } from '../format.js';
import type { ShardLayout } from './layout.js';

export const PARTIAL_FOLDER = '.mobe-partial';

/** Throws unless `output` lies outside every one of `inputs`, symbolic links resolved. */
export async function checkOutside(output: string, inputs: readonly string[]): Promise<void> {
  const real = await resolveExisting(output);
  for (const input of inputs) {
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

export interface OutputFolderOptions {
  /** Bytes the run will write, checked against the free space before anything is created. */
  neededBytes: number;
  /** Files of an earlier run to be removed when the new ones are whole. Anything else there is refused. */
  replaces?: readonly string[];
}

export class OutputFolder {
  private readonly written = new Map<string, number>();
  private readonly places = new Map<string, { handle: FileHandle; position: number; bytes: number }>();
  private readonly handles: FileHandle[] = [];
  private readonly files = new Set<string>();

  private constructor(
    readonly folder: string,
    private readonly replaces: readonly string[],
  ) {}

  /** Checks the folder and the disk, then creates the partial folder. */
  static async create(folder: string, { neededBytes, replaces = [] }: OutputFolderOptions): Promise<OutputFolder> {
    const held = await listOutput(folder);
    const foreign = held?.filter((name) => !replaces.includes(name));
    if (foreign?.length) throw new OutputNotEmptyError(folder, `is not empty (it holds ${foreign.slice(0, 3).join(', ')})`);
    await checkDisk(folder, neededBytes);
    const output = new OutputFolder(folder, replaces);
    try {
      await rm(output.partial(), { recursive: true, force: true });
      await mkdir(output.partial(), { recursive: true });
    } catch (error) {
      throw new OutputNotWritableError(folder, (error as Error).message);
    }
    return output;
  }

  private partial(file = ''): string {
    return join(this.folder, PARTIAL_FOLDER, file);
  }

  /** Creates a shard at its full size with its header, ready for writes in any order. */
  async reserve({ file, tensors, header, bytes }: ShardLayout): Promise<void> {
    try {
      const handle = await open(this.partial(file), 'wx');
      this.handles.push(handle);
      this.files.add(file);
      await handle.truncate(bytes);
      await handle.write(header, 0, header.byteLength, 0);
      let position = header.byteLength;
      for (const tensor of tensors) {
        this.places.set(tensor.name, { handle, position, bytes: tensor.bytes });
        position += tensor.bytes;
      }
    } catch (error) {
      throw new WriteError(join(this.folder, file), (error as Error).message);
    }
  }

  /** Writes part of a reserved tensor, `offset` bytes into it. */
  async write(tensor: string, offset: number, data: Uint8Array): Promise<void> {
    const place = this.places.get(tensor);
    if (!place || offset + data.byteLength > place.bytes) {
      throw new WriteError(this.folder, `no room is reserved for "${tensor}" at ${offset}`);
    }
    try {
      for (let done = 0; done < data.byteLength; ) {
        const length = data.byteLength - done;
        const { bytesWritten } = await place.handle.write(data, done, length, place.position + offset + done);
        done += bytesWritten;
      }
    } catch (error) {
      throw new WriteError(join(this.folder, tensor), (error as Error).message);
    }
    this.written.set(tensor, (this.written.get(tensor) ?? 0) + data.byteLength);
  }

  async writeText(file: string, text: string): Promise<void> {
    await this.add(file, (target) => writeFile(target, text));
  }

  async copyFile(source: string, file: string): Promise<void> {
    await this.add(file, (target) => copyFile(source, target, constants.COPYFILE_FICLONE));
  }

  private async add(file: string, create: (target: string) => Promise<void>): Promise<void> {
    const target = this.partial(file);
    try {
      await mkdir(dirname(target), { recursive: true });
      await create(target);
      const handle = await open(target, 'r+');
      await handle.sync().finally(() => handle.close());
    } catch (error) {
      throw new WriteError(join(this.folder, file), (error as Error).message);
    }
    this.files.add(file);
  }

  /**
   * Puts everything under its final name. Throws if any reserved byte was not written.
   * @param last files to move after all others: a loader that finds them finds the rest whole.
   */
  async commit(last: readonly string[]): Promise<void> {
    for (const [tensor, { bytes }] of this.places) {
      const written = this.written.get(tensor) ?? 0;
      if (written !== bytes) throw new IncompleteOutputError(tensor, written, bytes);
    }
    try {
      await Promise.all(this.handles.map((handle) => handle.sync()));
      await this.closeFiles();
      for (const file of this.replaces) await rm(join(this.folder, file), { recursive: true, force: true });
      const first = [...this.files].filter((file) => !last.includes(file));
      for (const file of [...first, ...last.filter((name) => this.files.has(name))]) {
        await mkdir(dirname(join(this.folder, file)), { recursive: true });
        await rename(this.partial(file), join(this.folder, file));
      }
      await rm(this.partial(), { recursive: true, force: true });
      await syncFolder(this.folder);
    } catch (error) {
      throw new WriteError(this.folder, (error as Error).message);
    }
  }

  /** Gives up: what was written so far is removed; an earlier run's files stay. */
  async abandon(): Promise<void> {
    await this.closeFiles();
    await rm(this.partial(), { recursive: true, force: true });
  }

  private async closeFiles(): Promise<void> {
    await Promise.allSettled(this.handles.splice(0).map((handle) => handle.close()));
  }
}

async function checkDisk(folder: string, neededBytes: number): Promise<void> {
  let existing = resolve(folder);
  for (;;) {
    try {
      const { bavail, bsize } = await statfs(existing);
      const free = bavail * bsize;
      if (free < neededBytes) throw new DiskTooSmallError(folder, formatBytes(neededBytes), formatBytes(free));
      return;
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code !== 'ENOENT' || dirname(existing) === existing) throw error;
      existing = dirname(existing);
    }
  }
}

/** Makes the renames themselves durable. Not every platform lets a folder be opened. */
async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder).catch(() => undefined);
  await handle?.sync().catch(() => {});
  await handle?.close();
}
