import { IncompleteOutputError, WriteError } from '../errors.js';
import { type FileSystem, nodeFileSystem, type OpenFile, readAll, writeAll } from '../file-system.js';
import { READ_BYTES } from '../sources/files.js';
import { Coverage } from './coverage.js';
import type { PartEntry } from './journal.js';
import type { ShardLayout } from './layout.js';
import { sha256 } from './sha256.js';

/** Smaller parts than this are gathered: handing one to the system takes longer than copying it. */
const SMALL_BYTES = 32 * 1024;
/** What is gathered before it is written; for each shard, and a checkpoint may have hundreds. */
const GATHERED_BYTES = 128 * 1024;

/**
 * For writes of 2 MiB and more Linux takes memory in pages of that size. A virtual machine's host has often taken those
 * back, and to get them again was measured to take five times as long as the write.
 */
const WRITE_BYTES = 2 ** 20;

/** Parts that follow each other, not yet given to the system. */
interface Gathered {
  readonly bytes: Uint8Array;
  readonly position: number;
  filled: number;
}

interface Place {
  readonly position: number;
  readonly bytes: number;
  readonly written: Coverage;
}

/**
 * A safetensors file of known layout, reserved at its full size, then filled in any order. It is the caller's to give it
 * its final name once `finish` has returned.
 */
export class ShardWriter {
  private readonly places = new Map<string, Place>();
  private gathered: Gathered | undefined;
  /** What was gathered before, counts as written, and may still be on its way. */
  private givenAway: Promise<unknown> = Promise.resolve();
  /** Something was written since the file was last brought to the disk. */
  private dirty = false;

  private constructor(
    private readonly path: string,
    private readonly file: OpenFile,
    private readonly headerBytes: number,
    layout: ShardLayout,
  ) {
    let position = headerBytes;
    for (const { name, bytes } of layout.tensors) {
      this.places.set(name, { position, bytes, written: new Coverage() });
      position += bytes;
    }
  }

  /** Creates the file, which must not exist. */
  static async create(path: string, layout: ShardLayout, fs: FileSystem = nodeFileSystem): Promise<ShardWriter> {
    let file: OpenFile | undefined;
    try {
      file = await fs.open(path, 'wx');
      const writer = new ShardWriter(path, file, layout.header.byteLength, layout);
      await file.truncate(layout.bytes);
      await writer.writeAt(layout.header, 0);
      return writer;
    } catch (error) {
      await file?.close().catch(() => {});
      throw asWriteError(path, error);
    }
  }

  /** Opens what an earlier run has reserved; undefined where that is not this file. Nothing in it counts as written yet. */
  static async reopen(path: string, layout: ShardLayout, fs: FileSystem): Promise<ShardWriter | undefined> {
    let file: OpenFile;
    try {
      file = await fs.open(path, 'r+');
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
      throw asWriteError(path, error);
    }
    const header = new Uint8Array(layout.header.byteLength);
    const same =
      (await file.stat()).size === layout.bytes &&
      (await readAll(file, header, 0)) &&
      Buffer.compare(header, layout.header) === 0;
    if (same) return new ShardWriter(path, file, layout.header.byteLength, layout);
    await file.close();
    return undefined;
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
    place.written.add(offset, offset + data.byteLength);
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
    if (!last) return;
    this.givenAway = Promise.all([this.givenAway, this.writeGathered(last)]);
    await this.givenAway;
  }

  private writeGathered({ bytes, position, filled }: Gathered): Promise<void> {
    return this.writeAt(bytes.subarray(0, filled), position);
  }

  /** Gives the system what was gathered. */
  private async flush(): Promise<void> {
    const { gathered } = this;
    this.gathered = undefined;
    await this.givenAway;
    if (gathered) await this.writeGathered(gathered);
  }

  /** Whether the file holds just these bytes of a tensor. */
  async holds({ tensor, start, end, sha256: expected }: PartEntry): Promise<boolean> {
    const place = this.places.get(tensor);
    if (!place || !(start < end && end <= place.bytes && end - start <= READ_BYTES)) return false;
    const bytes = new Uint8Array(end - start);
    return (await readAll(this.file, bytes, place.position + start)) && (await sha256(bytes)) === expected;
  }

  covers(tensor: string, offset: number, bytes: number): boolean {
    return this.places.get(tensor)?.written.covers(offset, offset + bytes) ?? false;
  }

  writtenBytes(tensor: string): number {
    return this.places.get(tensor)?.written.bytes ?? 0;
  }

  /** Counts a part as written: an earlier run has done it. */
  trust(tensor: string, offset: number, bytes: number): void {
    this.places.get(tensor)?.written.add(offset, offset + bytes);
  }

  /** Replaces the header by one of the same length, when its metadata is known only now. */
  async rewriteHeader(header: Uint8Array): Promise<void> {
    if (header.byteLength !== this.headerBytes) throw new WriteError(this.path, 'the new header has another length');
    await this.writeAt(header, 0);
  }

  private async writeAt(data: Uint8Array, position: number): Promise<void> {
    try {
      for (let at = 0; at < data.byteLength; at += WRITE_BYTES)
        await writeAll(this.file, data.subarray(at, at + WRITE_BYTES), position + at);
      this.dirty = true; // and not before: a sync that is under way need not have seen it
    } catch (error) {
      throw asWriteError(this.path, error);
    }
  }

  async sync(): Promise<void> {
    await this.flush();
    if (!this.dirty) return;
    this.dirty = false;
    try {
      await this.file.sync();
    } catch (error) {
      throw asWriteError(this.path, error);
    }
  }

  /** Checks that every byte was written, puts them on disk and closes the file. */
  async finish(): Promise<void> {
    for (const [tensor, { bytes, written }] of this.places) {
      if (written.bytes !== bytes) throw new IncompleteOutputError(tensor, written.bytes, bytes);
    }
    await this.sync();
    try {
      await this.file.close();
    } catch (error) {
      throw asWriteError(this.path, error);
    }
  }

  /** Closes the file as it is. */
  async abandon(): Promise<void> {
    await this.flush().catch(() => {});
    await this.file.close().catch(() => {});
  }
}

export function asWriteError(path: string, error: unknown): WriteError {
  if (error instanceof WriteError) return error;
  const { message, code } = error as NodeJS.ErrnoException;
  return new WriteError(path, message, code);
}
