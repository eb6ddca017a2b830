/** A file as the readers here see it: its size, and any range of it. */
import { type FileHandle, open } from 'node:fs/promises';
import { ReadError, TorchFileError } from '../errors.js';

export interface ByteSource {
  /** For messages. */
  readonly file: string;
  readonly bytes: number;
  /** The `length` bytes at `position`; callers ask only for ranges they have checked against `bytes`. */
  read(position: number, length: number): Promise<Uint8Array>;
}

/** Opens a file for `use` and closes it whatever happens. */
export async function withFile<T>(path: string, use: (source: ByteSource) => Promise<T>): Promise<T> {
  let handle: FileHandle;
  try {
    handle = await open(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const reason = code === 'ENOENT' ? 'there is no such file' : `it cannot be opened (${code})`;
    throw new TorchFileError(path, reason, 'Check the path and its permissions.');
  }
  try {
    const status = await handle.stat();
    if (!status.isFile()) throw new TorchFileError(path, 'it is not a file', 'Check the path.');
    return await use({
      file: path,
      bytes: status.size,
      read: (position, length) => readWhole(handle, path, position, length),
    });
  } finally {
    await handle.close();
  }
}

async function readWhole(handle: FileHandle, file: string, position: number, length: number): Promise<Uint8Array> {
  const bytes = new Uint8Array(length);
  for (let done = 0; done < length; ) {
    let bytesRead: number;
    try {
      ({ bytesRead } = await handle.read(bytes, done, length - done, position + done));
    } catch (error) {
      throw new ReadError(file, position + done, (error as Error).message);
    }
    if (bytesRead === 0) throw new ReadError(file, position + done, 'the file ends there');
    done += bytesRead;
  }
  return bytes;
}

/** Both containers and pickles are little-endian throughout. */
export const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** Text in a file that may be anything; undefined where it is not UTF-8. */
export function decodeText(bytes: Uint8Array): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}
