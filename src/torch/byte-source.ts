/** A file that is read by ranges. */
import { type FileHandle, open } from 'node:fs/promises';
import { ReadError, TorchFileError } from '../errors.js';

/** A file's size and its bytes. */
export interface ByteSource {
  /** Name for error messages. */
  readonly file: string;
  readonly bytes: number;
  /** Reads `length` bytes at `position`. Callers must first check the range against `bytes`. */
  read(position: number, length: number): Promise<Uint8Array>;
}

/** Opens a file, calls `use` and closes the file, even after an error. Throws a `TorchFileError`; reads throw a `ReadError`. */
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

/** A view of the bytes. Zip archives and pickles are always little-endian. */
export const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** The bytes as text; undefined if they are not UTF-8. */
export function decodeText(bytes: Uint8Array): string | undefined {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return undefined;
  }
}
