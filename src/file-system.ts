/**
 * All file operations of this program, behind one interface, so that tests can make each of them fail. Programs use
 * `nodeFileSystem`.
 */
import { mkdir, open, readdir, rename, rm, rmdir, stat, statfs } from 'node:fs/promises';

/** Facts that show whether a file has changed. */
export interface FileIdentity {
  readonly size: number;
  readonly mtimeMs: number;
  readonly ino: number;
}

/** An open file. The methods behave like those of Node's `FileHandle`. */
export interface OpenFile {
  read(target: Uint8Array, offset: number, length: number, position: number): Promise<{ bytesRead: number }>;
  /** @param position null writes at the end of a file that was opened for appending */
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
  /** Creates a folder and the folders above it. Does nothing if it exists. */
  mkdir(path: string): Promise<void>;
  rename(from: string, to: string): Promise<void>;
  /** Removes a file, or a folder with all its content. Does nothing if there is none. */
  remove(path: string): Promise<void>;
  /** Removes an empty folder. */
  rmdir(path: string): Promise<void>;
  /** Free bytes on the disk of an existing path. */
  freeBytes(path: string): Promise<number>;
}

/** The file operations of the system. */
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

/**
 * Writes all bytes, in several calls if necessary.
 * @returns the bytes written
 */
export async function writeAll(file: OpenFile, data: Uint8Array, position: number | null): Promise<number> {
  for (let done = 0; done < data.byteLength; ) {
    const at = position === null ? null : position + done;
    const { bytesWritten } = await file.write(data, done, data.byteLength - done, at);
    if (bytesWritten === 0) throw new RangeError('the file takes no more bytes');
    done += bytesWritten;
  }
  return data.byteLength;
}

/**
 * Fills `target`, in several calls if necessary.
 * @returns false if the file ends before
 */
export async function readAll(file: OpenFile, target: Uint8Array, position: number): Promise<boolean> {
  for (let done = 0; done < target.byteLength; ) {
    const { bytesRead } = await file.read(target, done, target.byteLength - done, position + done);
    if (bytesRead === 0) return false;
    done += bytesRead;
  }
  return true;
}

/** Writes a file with this content. The content is on disk when this resolves; the file's name may not be. */
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

/** Reads a whole file. Returns undefined if there is none or it has more than `most` bytes. */
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

/** Puts the names in a folder on disk. Ignores errors, because some platforms cannot open folders. */
export async function syncFolder(folder: string, fs: FileSystem = nodeFileSystem): Promise<void> {
  const handle = await fs.open(folder, 'r').catch(() => undefined);
  await handle?.sync().catch(() => {});
  await handle?.close();
}
