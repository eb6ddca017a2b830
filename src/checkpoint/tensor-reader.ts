/** Positional reads from shards. Files are opened at first use and kept open, up to a limit. */
import { type FileHandle, open } from 'node:fs/promises';
import { ReadError } from '../errors.js';

/** Large enough that a read costs more than its call, small enough to keep a cancelled run responsive. */
export const READ_BYTES = 8 * 1024 * 1024;

/** Far below the usual limit of 1024 descriptors a process; DeepSeek-V3 has 163 shards. */
const MAX_OPEN_FILES = 64;

export interface ByteRange {
  readonly file: string;
  readonly start: number;
  readonly end: number;
}

export class TensorReader {
  private readonly handles = new Map<string, Promise<FileHandle>>();

  /** Fills `target` from `file` at `position`. A file that ends early is an error, never a short result. */
  async read(file: string, position: number, target: Uint8Array): Promise<void> {
    const handle = await this.handle(file);
    for (let done = 0; done < target.byteLength; ) {
      const length = Math.min(READ_BYTES, target.byteLength - done);
      let bytesRead: number;
      try {
        ({ bytesRead } = await handle.read(target, done, length, position + done));
      } catch (error) {
        throw new ReadError(file, position + done, (error as Error).message);
      }
      if (bytesRead === 0) throw new ReadError(file, position + done, 'the file ends there');
      done += bytesRead;
    }
  }

  /** The bytes of one range, in memory of their own. */
  async readRange({ file, start, end }: ByteRange): Promise<Uint8Array<ArrayBuffer>> {
    const bytes = new Uint8Array(end - start);
    await this.read(file, start, bytes);
    return bytes;
  }

  private async handle(file: string): Promise<FileHandle> {
    let handle = this.handles.get(file);
    if (!handle) {
      handle = open(file).catch((error) => {
        throw new ReadError(file, 0, (error as Error).message);
      });
      this.evict();
    } else {
      this.handles.delete(file); // re-inserted below: the map is in order of last use
    }
    this.handles.set(file, handle);
    return handle;
  }

  private evict(): void {
    if (this.handles.size < MAX_OPEN_FILES) return;
    const [oldest, handle] = this.handles.entries().next().value as [string, Promise<FileHandle>];
    this.handles.delete(oldest);
    // Reads in flight on it finish first: FileHandle.close waits for them.
    handle.then((opened) => opened.close()).catch(() => {});
  }

  async close(): Promise<void> {
    const handles = [...this.handles.values()];
    this.handles.clear();
    await Promise.allSettled(handles.map(async (handle) => (await handle).close()));
  }
}
