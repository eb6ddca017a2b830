import { IncompleteOutputError, WriteError } from '../errors.js';
import { type FileSystem, nodeFileSystem, type OpenFile, readAll, writeAll } from '../file-system.js';
import { READ_BYTES } from '../sources/files.js';
import { Coverage } from './coverage.js';
import type { PartEntry } from './journal.js';
import type { ShardLayout } from './layout.js';
import { sha256 } from './sha256.js';

/** Parts smaller than this are gathered, because a write call takes longer than copying them. */
const SMALL_BYTES = 32 * 1024;
/** The size of the gathering buffer. Each shard has one, and a checkpoint may have hundreds of shards. */
const GATHERED_BYTES = 128 * 1024;

/**
 * The largest single write. For writes of 2 MiB or more, Linux allocates memory in pages of that size. The host of a virtual
 * machine has often reclaimed these, and getting them back was measured to take five times as long as the write.
 */
const WRITE_BYTES = 2 ** 20;

/** Parts that follow each other and are not yet written to the file. */
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
 * Writes a safetensors file of known layout. The file is created at its full size and then filled in any order. The caller
 * renames it after `finish`. Methods throw `WriteError`.
 */
export class ShardWriter {
  private readonly places = new Map<string, Place>();
  private gathered: Gathered | undefined;
  /** Earlier gathered parts, which count as written but may still be being written. */
  private givenAway: Promise<unknown> = Promise.resolve();
  /** Whether anything was written since the last `sync`. */
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

  /** Creates the file. It must not exist. */
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

  /**
   * Opens a file that an earlier run created. Returns undefined if size or header differ. No part of it counts as written yet.
   */
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

  /** Writes part of a tensor, starting at byte `offset` of it. Small parts may be gathered and written later. */
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

  /** Writes the gathered parts. */
  private async flush(): Promise<void> {
    const { gathered } = this;
    this.gathered = undefined;
    await this.givenAway;
    if (gathered) await this.writeGathered(gathered);
  }

  /** Whether the bytes in the file have this hash. */
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

  /** Counts a part as written, because an earlier run has written it. */
  trust(tensor: string, offset: number, bytes: number): void {
    this.places.get(tensor)?.written.add(offset, offset + bytes);
  }

  /** Replaces the header by one of the same length, for metadata that is known only at the end. */
  async rewriteHeader(header: Uint8Array): Promise<void> {
    if (header.byteLength !== this.headerBytes) throw new WriteError(this.path, 'the new header has another length');
    await this.writeAt(header, 0);
  }

  private async writeAt(data: Uint8Array, position: number): Promise<void> {
    try {
      for (let at = 0; at < data.byteLength; at += WRITE_BYTES)
        await writeAll(this.file, data.subarray(at, at + WRITE_BYTES), position + at);
      this.dirty = true; // set after the write, because a running sync may not include it
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

  /** Checks that every byte was written, puts the file on disk and closes it. Throws `IncompleteOutputError`. */
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

  /** Closes the incomplete file. */
  async abandon(): Promise<void> {
    await this.flush().catch(() => {});
    await this.file.close().catch(() => {});
  }
}

/** Wraps an error of the file system as a `WriteError` for `path`. */
export function asWriteError(path: string, error: unknown): WriteError {
  if (error instanceof WriteError) return error;
  const { message, code } = error as NodeJS.ErrnoException;
  return new WriteError(path, message, code);
}
