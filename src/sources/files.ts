/** Where a checkpoint's bytes come from: files of this machine, or those that another one serves. */
import { readdir, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { NotACheckpointError, ReadError, SourceChangedError } from '../errors.js';
import { type FileIdentity, type FileSystem, nodeFileSystem, type OpenFile } from '../file-system.js';

/** Large enough that a read costs more than its call, small enough to keep a cancelled run responsive. */
export const READ_BYTES = 8 * 1024 * 1024;

/** Far below the usual limit of 1024 descriptors a process; DeepSeek-V3 has 163 shards. */
const MAX_OPEN_FILES = 64;

export interface ByteRange {
  readonly file: string;
  readonly start: number;
  readonly end: number;
}

/** Reads files by ranges. A file that ends early is a `ReadError`, never a short result. */
export interface RangeReader {
  /** Fills `target` from `file` at `position`. */
  read(file: string, position: number, target: Uint8Array): Promise<void>;
  /** The bytes of one range, in memory of their own. */
  readRange(range: ByteRange): Promise<Uint8Array<ArrayBuffer>>;
}

export interface FileEntry {
  /** Relative to the folder, with "/" between its parts. */
  readonly path: string;
  readonly bytes: number;
  /** When it was last written to, in milliseconds since 1970. */
  readonly modified: number;
}

export interface Files extends RangeReader {
  /** All files in a folder and below it, but hidden ones, sorted by path. Throws `NotACheckpointError` where it cannot. */
  list(folder: string): Promise<FileEntry[]>;
  /**
   * Links in the folder, or below it, that lead to nothing: `list` has none of them. Absent where files are read that cannot be
   * such links.
   */
  dangling?(folder: string): Promise<string[]>;
  /** Bytes of a file. */
  size(file: string): Promise<number>;
  /** Throws `SourceChangedError` where a file is not what it was when it was first opened. */
  checkUnchanged(): Promise<void>;
  /** Gives back what is held open; a later read opens it again. */
  close(): Promise<void>;
}

const URL = /^wss?:\/\//;

/** The location names a checkpoint that another machine serves, not a folder of this one. */
export const isRemote = (location: string): boolean => URL.test(location);

/** A location as it is kept and told: an absolute path, or a URL without a slash at its end. */
export const normaliseLocation = (location: string): string =>
  isRemote(location) ? location.replace(/\/+$/, '') : resolve(location);

/** A file in a folder. */
export const fileIn = (folder: string, path: string): string =>
  isRemote(folder) ? `${folder}/${path}` : join(folder, path);

/** Files of this machine. They are opened at first use and kept open, up to a limit. */
export class LocalFiles implements Files {
  private readonly handles = new Map<string, Promise<OpenFile>>();
  /** As first opened. */
  private readonly known = new Map<string, FileIdentity>();

  constructor(private readonly fs: FileSystem = nodeFileSystem) {}

  async read(file: string, position: number, target: Uint8Array): Promise<void> {
    const handle = await this.handle(file);
    for (let done = 0; done < target.byteLength; ) {
      const length = Math.min(READ_BYTES, target.byteLength - done);
      let bytesRead: number;
      try {
        ({ bytesRead } = await handle.read(target, done, length, position + done));
      } catch (error) {
        const { message, code } = error as NodeJS.ErrnoException;
        throw new ReadError(file, position + done, message, code);
      }
      if (bytesRead === 0) throw new ReadError(file, position + done, 'the file ends there');
      done += bytesRead;
    }
  }

  async readRange({ file, start, end }: ByteRange): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(end - start);
    await this.read(file, start, bytes);
    return bytes;
  }

  async list(folder: string): Promise<FileEntry[]> {
    return (await this.walk(folder)).entries.sort((a, b) => (a.path < b.path ? -1 : 1));
  }

  async dangling(folder: string): Promise<string[]> {
    return (await this.walk(folder)).dangling.sort();
  }

  private async walk(folder: string): Promise<{ entries: FileEntry[]; dangling: string[] }> {
    const root = resolve(folder);
    const entries: FileEntry[] = [];
    const dangling: string[] = [];
    const visit = async (below: string): Promise<void> => {
      for (const found of await readdir(join(root, below), { withFileTypes: true })) {
        const { name } = found;
        if (name.startsWith('.')) continue;
        const path = below ? `${below}/${name}` : name;
        // Links to files are followed: download caches store files as links to blobs. A dangling one is no file. Links to
        // folders are not: nothing makes them, and two of them to "." would make a tree of 2^40 folders.
        const entry = await stat(join(root, path)).catch(() => undefined);
        if (found.isDirectory()) await visit(path);
        else if (entry?.isFile()) entries.push({ path, bytes: entry.size, modified: entry.mtimeMs });
        else if (!entry) dangling.push(path);
      }
    };
    try {
      await visit('');
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      const reason = code === 'ENOENT' ? 'there is no such folder' : code === 'ENOTDIR' ? 'it is a file' : String(code);
      throw new NotACheckpointError(root, reason);
    }
    return { entries, dangling };
  }

  async size(file: string): Promise<number> {
    const { size } = await (await this.handle(file)).stat();
    return size;
  }

  async checkUnchanged(): Promise<void> {
    for (const file of this.known.keys()) {
      const now = await this.fs.stat(file).catch((error: Error) => {
        throw new SourceChangedError(file, error.message);
      });
      this.compare(file, now);
    }
  }

  private compare(file: string, { size, mtimeMs, ino }: FileIdentity): void {
    const known = this.known.get(file);
    if (!known) this.known.set(file, { size, mtimeMs, ino });
    else if (known.size !== size) throw new SourceChangedError(file, `it had ${known.size} bytes, now ${size}`);
    else if (known.ino !== ino) throw new SourceChangedError(file, 'it is another file now');
    else if (known.mtimeMs !== mtimeMs)
      throw new SourceChangedError(file, `it was written to at ${new Date(mtimeMs).toISOString()}`);
  }

  private async open(file: string): Promise<OpenFile> {
    let handle: OpenFile | undefined;
    try {
      handle = await this.fs.open(file, 'r');
      this.compare(file, await handle.stat());
      return handle;
    } catch (error) {
      await handle?.close();
      if (error instanceof SourceChangedError) throw error;
      const { message, code } = error as NodeJS.ErrnoException;
      throw new ReadError(file, 0, message, code);
    }
  }

  private async handle(file: string): Promise<OpenFile> {
    let handle = this.handles.get(file);
    if (!handle) {
      handle = this.open(file);
      this.evict();
    } else {
      this.handles.delete(file); // re-inserted below: the map is in order of last use
    }
    this.handles.set(file, handle);
    return handle;
  }

  private evict(): void {
    if (this.handles.size < MAX_OPEN_FILES) return;
    const [oldest, handle] = this.handles.entries().next().value as [string, Promise<OpenFile>];
    this.handles.delete(oldest);
    // Reads in flight on it finish first: closing waits for them.
    handle.then((opened) => opened.close()).catch(() => {});
  }

  async close(): Promise<void> {
    const handles = [...this.handles.values()];
    this.handles.clear();
    await Promise.allSettled(handles.map(async (handle) => (await handle).close()));
  }
}
