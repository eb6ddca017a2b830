/** The interface for reading a checkpoint's files, and its implementation for local files. */
import { readdir, stat } from 'node:fs/promises';
import { join, resolve } from 'node:path';
import { NotACheckpointError, ReadError, SourceChangedError } from '../errors.js';
import { type FileIdentity, type FileSystem, nodeFileSystem, type OpenFile } from '../file-system.js';

/**
 * The most bytes of one read. It is large enough to make the cost of a call small, and small enough to let a run stop quickly.
 */
export const READ_BYTES = 8 * 1024 * 1024;

/** Far below the usual limit of 1024 open files for a process. DeepSeek-V3 has 163 shards. */
const MAX_OPEN_FILES = 64;

/** The bytes of a file from `start` up to, but not including, `end`. */
export interface ByteRange {
  readonly file: string;
  readonly start: number;
  readonly end: number;
}

/** Reads ranges of files. Throws a `ReadError` if a file ends early; it never returns fewer bytes. */
export interface RangeReader {
  /** Fills `target` from `file`, starting at byte `position`. */
  read(file: string, position: number, target: Uint8Array): Promise<void>;
  /** Reads a range into a new array. */
  readRange(range: ByteRange): Promise<Uint8Array<ArrayBuffer>>;
}

/** A file in a folder. */
export interface FileEntry {
  /** Relative to the folder, with "/" between its parts. */
  readonly path: string;
  readonly bytes: number;
  /** The time of its last modification, in milliseconds since 1970. */
  readonly modified: number;
}

/** Lists and reads files. Implement this to read a checkpoint from another place. */
export interface Files extends RangeReader {
  /**
   * All files in a folder and below it, except hidden ones, sorted by path. Throws `NotACheckpointError` if it cannot be
   * listed.
   */
  list(folder: string): Promise<FileEntry[]>;
  /**
   * Links in the folder or below it whose target is missing, sorted by path. `list` leaves them out. Absent for sources that
   * cannot have such links.
   */
  dangling?(folder: string): Promise<string[]>;
  /** The commit that all files are of. Absent, or undefined, for sources that have no commits. */
  commit?(folder: string): Promise<string | undefined>;
  /**
   * Fetches the beginnings of shards, several at a time, and keeps them until `close`: their headers are read next. Absent where
   * a read does not wait for a network.
   */
  readHeads?(files: readonly string[]): Promise<void>;
  /** The size of a file in bytes. */
  size(file: string): Promise<number>;
  /** Throws `SourceChangedError` if a file has changed since it was first opened. */
  checkUnchanged(): Promise<void>;
  /** Closes open files and connections. A later read opens them again. */
  close(): Promise<void>;
}

/** A folder, and the object that reads it. A checkpoint is one too. */
export interface SourceFolder {
  /**
   * An absolute path or a URL, as `files` names it. A place that is not a local folder must have a name with a scheme, for
   * example `memory://model`, because a path without a scheme counts as a folder in which the output must not lie.
   */
  readonly folder: string;
  readonly files: Files;
}

/** Local files. They are opened at first use and kept open, up to a limit. */
export class LocalFiles implements Files {
  private readonly handles = new Map<string, Promise<OpenFile>>();
  /** The identity of each file when it was first opened. */
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
        // Links to files are followed, because download caches store files as links. Broken links are ignored. Links to folders
        // are not followed: no tool makes them, and two of them to "." would make a tree of 2^40 folders.
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
      this.handles.delete(file); // re-inserted below, so that the map is in order of last use
    }
    this.handles.set(file, handle);
    return handle;
  }

  private evict(): void {
    if (this.handles.size < MAX_OPEN_FILES) return;
    const [oldest, handle] = this.handles.entries().next().value as [string, Promise<OpenFile>];
    this.handles.delete(oldest);
    // Closing waits for reads of this file that are still running.
    handle.then((opened) => opened.close()).catch(() => {});
  }

  async close(): Promise<void> {
    const handles = [...this.handles.values()];
    this.handles.clear();
    await Promise.allSettled(handles.map(async (handle) => (await handle).close()));
  }
}
