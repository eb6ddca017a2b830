import { mkdir, open, readdir, realpath, rename, rm, rmdir, statfs, writeFile } from 'node:fs/promises';
import { dirname, isAbsolute, join, relative, resolve } from 'node:path';
import {
  DiskTooSmallError,
  OutputInsideInputError,
  OutputNotEmptyError,
  OutputNotWritableError,
  WriteError,
} from '../errors.js';
import { formatBytes } from '../format.js';
import { isRemote } from './files.js';
import type { ShardLayout } from './layout.js';
import { asWriteError, ShardWriter } from './shard-writer.js';

export const PARTIAL_FOLDER = '.mobe-partial';

/** Throws unless `output` lies outside every one of `inputs`, symbolic links resolved. */
export async function checkOutside(output: string, inputs: readonly string[]): Promise<void> {
  const real = await resolveExisting(output);
  for (const input of inputs.filter((it) => !isRemote(it))) {
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

/** Where a conversion's files go: a folder here, or one on another machine. */
export interface Output {
  /** Makes room for a shard at its full size, with its header, ready for writes in any order. */
  reserve(layout: ShardLayout): Promise<void>;
  /** Writes part of a reserved tensor, `offset` bytes into it. Several may be under way. */
  write(tensor: string, offset: number, data: Uint8Array): Promise<void>;
  /** `write` goes on using `data` after it has resolved, so its memory must not be used again. */
  readonly retains?: boolean;
  writeText(file: string, text: string): Promise<void>;
  /** @param bytes of all the content */
  writeFile(file: string, bytes: number, content: AsyncIterable<Uint8Array>): Promise<void>;
  /**
   * Puts everything under its final name. Throws if any reserved byte was not written.
   * @param last files without which a loader sees nothing: the old ones go first, the new ones come last.
   */
  commit(last: readonly string[]): Promise<void>;
  /** Gives up: what was written so far is removed; an earlier run's files stay. */
  abandon(): Promise<void>;
  /** Tells when the place is gone while nobody is writing to it. */
  onLost?(listener: (error: Error) => void): void;
}

export interface OutputFolderOptions {
  /** Bytes the run will write, checked against the free space before anything is created. */
  neededBytes: number;
  /** Files of an earlier run to be removed when the new ones are whole. Anything else there is refused. */
  replaces?: readonly string[];
}

export class OutputFolder implements Output {
  private readonly shards: ShardWriter[] = [];
  private readonly holder = new Map<string, ShardWriter>();
  private readonly files = new Set<string>();

  private constructor(
    readonly folder: string,
    private readonly replaces: readonly string[],
  ) {}

  /** Checks the folder and the disk, then creates the partial folder. */
  static async create(folder: string, { neededBytes, replaces = [] }: OutputFolderOptions): Promise<OutputFolder> {
    const foreign = (await listOutput(folder))?.filter((name) => !replaces.includes(name));
    if (foreign?.length)
      throw new OutputNotEmptyError(folder, `is not empty (it holds ${foreign.slice(0, 3).join(', ')})`);
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

  async reserve(layout: ShardLayout): Promise<void> {
    const shard = await ShardWriter.create(this.partial(layout.file), layout);
    this.files.add(layout.file);
    this.shards.push(shard);
    for (const tensor of shard.tensors) this.holder.set(tensor, shard);
  }

  async write(tensor: string, offset: number, data: Uint8Array): Promise<void> {
    const shard = this.holder.get(tensor);
    if (!shard) throw new WriteError(this.folder, `no room is reserved for "${tensor}"`);
    await shard.write(tensor, offset, data);
  }

  async writeText(file: string, text: string): Promise<void> {
    await this.add(file, (target) => writeFile(target, text));
  }

  async writeFile(file: string, _bytes: number, content: AsyncIterable<Uint8Array>): Promise<void> {
    await this.add(file, (target) => writeFile(target, content));
  }

  private async add(file: string, create: (target: string) => Promise<void>): Promise<void> {
    const target = this.partial(file);
    try {
      await mkdir(dirname(target), { recursive: true });
      await create(target);
      const handle = await open(target, 'r+');
      await handle.sync().finally(() => handle.close());
    } catch (error) {
      throw asWriteError(join(this.folder, file), error);
    }
    this.files.add(file);
  }

  async commit(last: readonly string[]): Promise<void> {
    for (const shard of this.shards) await shard.finish();
    this.shards.length = 0;
    const lastFirst = (files: Iterable<string>): string[] =>
      [...files].sort((a, b) => Number(last.includes(b)) - Number(last.includes(a)));
    try {
      for (const file of lastFirst(this.replaces)) await rm(join(this.folder, file), { recursive: true, force: true });
      for (const file of lastFirst(this.files).reverse()) {
        await mkdir(dirname(join(this.folder, file)), { recursive: true });
        await rename(this.partial(file), join(this.folder, file));
      }
      await rm(this.partial(), { recursive: true, force: true });
      await syncFolder(this.folder);
    } catch (error) {
      throw asWriteError(this.folder, error);
    }
  }

  async abandon(): Promise<void> {
    for (const shard of this.shards.splice(0)) await shard.abandon();
    await rm(this.partial(), { recursive: true, force: true });
    await rmdir(this.folder).catch(() => {}); // created by this run, or not empty and kept
  }
}

/** Throws unless the disk that holds `folder`, or will, has room. */
export async function checkDisk(folder: string, neededBytes: number): Promise<void> {
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
export async function syncFolder(folder: string): Promise<void> {
  const handle = await open(folder).catch(() => undefined);
  await handle?.sync().catch(() => {});
  await handle?.close();
}
