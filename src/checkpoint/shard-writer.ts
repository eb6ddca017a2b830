import { type FileHandle, open } from 'node:fs/promises';
import { IncompleteOutputError, WriteError } from '../errors.js';
import type { ShardLayout } from './layout.js';

/** Smaller parts than this are gathered: handing one to the system takes longer than copying it. */
const SMALL_BYTES = 32 * 1024;
/** What is gathered before it is written; for each shard, and a checkpoint may have hundreds. */
const GATHERED_BYTES = 128 * 1024;

/** Parts that follow each other, not yet given to the system. */
interface Gathered {
  readonly bytes: Uint8Array;
  readonly position: number;
  filled: number;
}

/**
 * A safetensors file of known layout, reserved at its full size, then filled in any order. It is the caller's to give it
 * its final name once `finish` has returned.
 */
export class ShardWriter {
  private readonly places = new Map<string, { position: number; bytes: number; written: number }>();

  private gathered: Gathered | undefined;

  private constructor(
    private readonly path: string,
    private readonly handle: FileHandle,
    private readonly headerBytes: number,
    layout: ShardLayout,
  ) {
    let position = headerBytes;
    for (const { name, bytes } of layout.tensors) {
      this.places.set(name, { position, bytes, written: 0 });
      position += bytes;
    }
  }

  /** Creates the file, which must not exist. */
  static async create(path: string, layout: ShardLayout): Promise<ShardWriter> {
    try {
      const handle = await open(path, 'wx');
      const writer = new ShardWriter(path, handle, layout.header.byteLength, layout);
      await handle.truncate(layout.bytes);
      await writer.writeAt(layout.header, 0);
      return writer;
    } catch (error) {
      throw asWriteError(path, error);
    }
  }

  get tensors(): Iterable<string> {
    return this.places.keys();
  }

  /** Writes part of a tensor, `offset` bytes into it; a small one perhaps together with those after it. */
  async write(tensor: string, offset: number, data: Uint8Array): Promise<void> {
    const place = this.places.get(tensor);
    if (!place || offset + data.byteLength > place.bytes) {
      throw new WriteError(this.path, `no room is reserved for ${data.byteLength} bytes of "${tensor}" at ${offset}`);
    }
    const position = place.position + offset;
    if (data.byteLength < SMALL_BYTES) await this.gather(data, position);
    else await this.writeAt(data, position);
    place.written += data.byteLength;
  }

  private async gather(data: Uint8Array, position: number): Promise<void> {
    const last = this.gathered;
    const follows = last && last.position + last.filled === position;
    if (last && follows && last.filled + data.byteLength <= GATHERED_BYTES) {
      last.bytes.set(data, last.filled);
      last.filled += data.byteLength;
      return;
    }
    const bytes = new Uint8Array(GATHERED_BYTES);
    bytes.set(data);
    this.gathered = { bytes, position, filled: data.byteLength };
    if (last) await this.writeGathered(last);
  }

  private writeGathered({ bytes, position, filled }: Gathered): Promise<void> {
    return this.writeAt(bytes.subarray(0, filled), position);
  }

  /** Replaces the header by one of the same length, when its metadata is known only now. */
  async rewriteHeader(header: Uint8Array): Promise<void> {
    if (header.byteLength !== this.headerBytes) throw new WriteError(this.path, 'the new header has another length');
    await this.writeAt(header, 0);
  }

  private async writeAt(data: Uint8Array, position: number): Promise<void> {
    try {
      for (let done = 0; done < data.byteLength; ) {
        const { bytesWritten } = await this.handle.write(data, done, data.byteLength - done, position + done);
        done += bytesWritten;
      }
    } catch (error) {
      throw asWriteError(this.path, error);
    }
  }

  /** Checks that every byte was written, puts them on disk and closes the file. */
  async finish(): Promise<void> {
    for (const [tensor, { bytes, written }] of this.places) {
      if (written !== bytes) throw new IncompleteOutputError(tensor, written, bytes);
    }
    if (this.gathered) await this.writeGathered(this.gathered);
    this.gathered = undefined;
    try {
      await this.handle.sync();
      await this.handle.close();
    } catch (error) {
      throw asWriteError(this.path, error);
    }
  }

  /** Closes the file as it is. */
  async abandon(): Promise<void> {
    await this.handle.close().catch(() => {});
  }
}

export const asWriteError = (path: string, error: unknown): WriteError =>
  error instanceof WriteError ? error : new WriteError(path, (error as Error).message);
