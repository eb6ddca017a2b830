/**
 * The few calls by which files are read and written, so that tests can make each of them fail. Programs use
 * `nodeFileSystem`; a fault is the same code over another one.
 */
import { mkdir, open, readdir, rename, rm, rmdir, stat, statfs } from 'node:fs/promises';

/** By which a file is known again. */
export interface FileIdentity {
  readonly size: number;
  readonly mtimeMs: number;
  readonly ino: number;
}

/** A file that is open. The calls are those of `node:fs/promises`. */
export interface OpenFile {
  read(target: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesRead: number }>;
  /** @param position null: at the end, of a file that was opened to be appended to */
  write(data: Uint8Array, offset: number, length: number, position: number | null): Promise<{ bytesWritten: number }>;
  truncate(bytes: number): Promise<void>;
  stat(): Promise<FileIdentity>;
  sync(): Promise<void>;
  close(): Promise<void>;
}

/** The calls to the file system that runs make. Tests put failures in their place. */
export interface FileSystem {
  open(path: string, flags: 'r' | 'r+' | 'w' | 'wx' | 'a'): Promise<OpenFile>;
  stat(path: string): Promise<FileIdentity>;
  readdir(path: string): Promise<string[]>;
  /** With the folders above it; one that is there is left. */
  mkdir(path: string): Promise<void>;
  rename(from: string, to: string): Promise<void>;
  /** A file, or a folder with all in it; nothing where nothing is. */
  remove(path: string): Promise<void>;
  /** A folder that is empty. */
  rmdir(path: string): Promise<void>;
  /** Bytes that are free where an existing path lies. */
  freeBytes(path: string): Promise<number>;
}

export const nodeFileSystem: FileSystem = {
  open: (path, flags) => open(path, flags),
  stat: (path) => stat(path),
  readdir: (path) => readdir(path),
  async mkdir(path) {
    await mkdir(path, { recursive: true });
  },
  rename,
  remove: (path) => rm(path, { recursive: true, force: true }),
  rmdir: (path) => rmdir(path),
  async freeBytes(path) {
    const { bavail, bsize } = await statfs(path);
    return bavail * bsize;
  },
};

/** Writes all of it, however little a call takes. @returns the bytes written */
export async function writeAll(file: OpenFile, data: Uint8Array, position: number | null): Promise<number> {
  for (let done = 0; done < data.byteLength; ) {
    const at = position === null ? null : position + done;
    const { bytesWritten } = await file.write(data, done, data.byteLength - done, at);
    if (bytesWritten === 0) throw new RangeError('the file takes no more bytes');
    done += bytesWritten;
  }
  return data.byteLength;
}

/** Fills `target`, however little a call gives. @returns false where the file ends before */
export async function readAll(file: OpenFile, target: Uint8Array, position: number): Promise<boolean> {
  for (let done = 0; done < target.byteLength; ) {
    const { bytesRead } = await file.read(target, done, target.byteLength - done, position + done);
    if (bytesRead === 0) return false;
    done += bytesRead;
  }
  return true;
}

/** A file of this content, on disk when it resolves. */
export async function writeSynced(
  fs: FileSystem,
  path: string,
  content: Iterable<Uint8Array> | AsyncIterable<Uint8Array>,
): Promise<void> {
  const file = await fs.open(path, 'w');
  try {
    let position = 0;
    for await (const data of content) position += await writeAll(file, data, position);
    await file.sync();
  } finally {
    await file.close();
  }
}

/** A whole file; undefined where there is none, or none of at most so many bytes. */
export async function readWhole(
  fs: FileSystem,
  path: string,
  most: number,
): Promise<Uint8Array<ArrayBuffer> | undefined> {
  let file: OpenFile;
  try {
    file = await fs.open(path, 'r');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
  try {
    const { size } = await file.stat();
    if (size > most) return undefined;
    const bytes = new Uint8Array(size);
    return (await readAll(file, bytes, 0)) ? bytes : undefined;
  } finally {
    await file.close();
  }
}

/** Makes the names in a folder durable. Not every platform lets a folder be opened. */
export async function syncFolder(folder: string, fs: FileSystem = nodeFileSystem): Promise<void> {
  const handle = await fs.open(folder, 'r').catch(() => undefined);
  await handle?.sync().catch(() => {});
  await handle?.close();
}
