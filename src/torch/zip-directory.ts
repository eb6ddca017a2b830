/**
 * Finds the byte ranges of a zip archive's entries (PKWARE APPNOTE 6.3.10, sections 4.3 and 4.5.3). The archive must be like those
 * of `torch.save`: entries are stored without compression, there is no comment at the end, and zip64 records hold values above
 * 32 bits. Ambiguous archives are refused. Checksums are not compared: that would read every byte, and
 * `torch.serialization.set_crc32_options(False)` writes wrong ones.
 */
import { TorchFileError } from '../errors.js';
import { type ByteSource, decodeText, viewOf } from './byte-source.js';

/** Each tensor's storage is an entry. DeepSeek-V3 has 91 000 tensors. */
export const MAX_ENTRIES = 1 << 18;

/** 256 bytes for each entry. torch writes about 100. */
export const MAX_DIRECTORY_BYTES = 64 * 1024 * 1024;

const END_BYTES = 22;
const ZIP64_LOCATOR_BYTES = 20;
const ZIP64_END_BYTES = 56;
const CENTRAL_BYTES = 46;
const LOCAL_BYTES = 30;

const SIGNATURE = {
  local: 0x04034b50,
  central: 0x02014b50,
  end: 0x06054b50,
  zip64End: 0x06064b50,
  zip64Locator: 0x07064b50,
} as const;

/** These values mean that the zip64 record has the value. */
const NONE_16 = 0xffff;
const NONE_32 = 0xffffffff;

const ZIP64_EXTRA = 1;
const ENCRYPTED = 1;
const STORED = 0;

/** An entry's byte range. */
export interface ZipEntry {
  readonly name: string;
  /** Bytes of the data. */
  readonly size: number;
  /** Absolute offset of the data, after the entry's local header. */
  readonly dataStart: number;
}

/** The entries by name, in the order of the directory. Reads the directory and each local header. Throws a `TorchFileError`. */
export async function readZipDirectory(source: ByteSource): Promise<Map<string, ZipEntry>> {
  const { start, size, count } = await readEnd(source);
  const listed = parseDirectory(await source.read(start, size), count, source.file);
  const starts = new Map<string, number>();
  let position = 0;
  for (const entry of [...listed.values()].sort((a, b) => a.headerStart - b.headerStart)) {
    if (entry.headerStart < position)
      throw new TorchFileError(source.file, `zip entry "${entry.name}" overlaps the one before it`);
    const dataStart = await readLocalHeader(source, entry, start);
    position = dataStart + entry.size;
    if (position > start)
      throw new TorchFileError(source.file, `zip entry "${entry.name}" reaches beyond the file's data`);
    starts.set(entry.name, dataStart);
  }
  const entries = [...listed.values()].map(({ name, size }) => ({ name, size, dataStart: starts.get(name) as number }));
  return new Map(entries.map((entry) => [entry.name, entry]));
}

interface Directory {
  readonly start: number;
  readonly size: number;
  readonly count: number;
}

/** The directory's place, from the records at the end of the file, checked against the file's size. */
async function readEnd({ file, bytes, read }: ByteSource): Promise<Directory> {
  const tailBytes = Math.min(bytes, ZIP64_END_BYTES + ZIP64_LOCATOR_BYTES + END_BYTES);
  const tail = viewOf(await read(bytes - tailBytes, tailBytes));
  const end = tailBytes - END_BYTES;
  if (end < 0 || tail.getUint32(end, true) !== SIGNATURE.end || tail.getUint16(end + 20, true) !== 0)
    throw new TorchFileError(file, 'it does not end with the directory of a zip archive; it is truncated');
  let directory: Directory = {
    start: tail.getUint32(end + 16, true),
    size: tail.getUint32(end + 12, true),
    count: tail.getUint16(end + 10, true),
  };
  let next = end;
  const locator = end - ZIP64_LOCATOR_BYTES;
  if (locator >= 0 && tail.getUint32(locator, true) === SIGNATURE.zip64Locator) {
    next = locator - ZIP64_END_BYTES;
    const isWhole = next >= 0 && uint64(tail, locator + 8) === bytes - tailBytes + next;
    if (!isWhole || tail.getUint32(next, true) !== SIGNATURE.zip64End)
      throw new TorchFileError(file, 'its zip64 end record is not where its locator says');
    const wide = { start: uint64(tail, next + 48), size: uint64(tail, next + 40), count: uint64(tail, next + 32) };
    if (
      !agrees(directory.start, NONE_32, wide.start) ||
      !agrees(directory.size, NONE_32, wide.size) ||
      !agrees(directory.count, NONE_16, wide.count)
    )
      throw new TorchFileError(file, 'its two end records contradict each other');
    directory = wide;
  }
  if (directory.start + directory.size !== bytes - tailBytes + next)
    throw new TorchFileError(file, `its zip directory (${directory.size} bytes) is not right before its end record`);
  if (directory.count > MAX_ENTRIES)
    throw new TorchFileError(file, `it claims ${directory.count} zip entries, the limit is ${MAX_ENTRIES}`);
  if (directory.size > MAX_DIRECTORY_BYTES)
    throw new TorchFileError(
      file,
      `its zip directory has ${directory.size} bytes, the limit is ${MAX_DIRECTORY_BYTES}`,
    );
  return directory;
}

const agrees = (narrow: number, none: number, wide: number): boolean => narrow === none || narrow === wide;

/** It is rounded above 2^53. Such a value is larger than any file, and later checks refuse it. */
const uint64 = (view: DataView, at: number): number => Number(view.getBigUint64(at, true));

interface ListedEntry {
  readonly name: string;
  readonly nameBytes: Uint8Array;
  readonly size: number;
  readonly headerStart: number;
}

function parseDirectory(bytes: Uint8Array, count: number, file: string): Map<string, ListedEntry> {
  const entries = new Map<string, ListedEntry>();
  const view = viewOf(bytes);
  let at = 0;
  for (let i = 0; i < count; i++) {
    if (at + CENTRAL_BYTES > bytes.byteLength || view.getUint32(at, true) !== SIGNATURE.central)
      throw new TorchFileError(file, `its zip directory has no entry ${i + 1} of ${count}`);
    const nameEnd = at + CENTRAL_BYTES + view.getUint16(at + 28, true);
    const extraEnd = nameEnd + view.getUint16(at + 30, true);
    const next = extraEnd + view.getUint16(at + 32, true);
    if (next > bytes.byteLength) throw new TorchFileError(file, `entry ${i + 1} of its zip directory is cut off`);
    const nameBytes = bytes.subarray(at + CENTRAL_BYTES, nameEnd);
    const name = decodeText(nameBytes);
    if (name === undefined) throw new TorchFileError(file, `the name of zip entry ${i + 1} is not UTF-8`);
    if (entries.has(name)) throw new TorchFileError(file, `zip entry "${name}" appears twice`);
    if (view.getUint16(at + 8, true) & ENCRYPTED) throw new TorchFileError(file, `zip entry "${name}" is encrypted`);
    if (view.getUint16(at + 10, true) !== STORED)
      throw new TorchFileError(
        file,
        `zip entry "${name}" is compressed`,
        'torch.save stores entries as they are: load the file with torch and save it again.',
      );
    const [size, storedSize, headerStart] = widen(
      [view.getUint32(at + 24, true), view.getUint32(at + 20, true), view.getUint32(at + 42, true)],
      bytes.subarray(nameEnd, extraEnd),
    );
    if (size !== storedSize) throw new TorchFileError(file, `zip entry "${name}" is stored, but of two sizes`);
    entries.set(name, { name, nameBytes, size, headerStart });
    at = next;
  }
  if (at !== bytes.byteLength) throw new TorchFileError(file, `its zip directory goes on after its ${count} entries`);
  return entries;
}

/**
 * Replaces size, stored size and offset of the local header by their zip64 values. The zip64 field has only the values that are
 * 2³²−1 in the entry, in this order. A value that is missing there too stays 2³²−1.
 */
function widen(values: [number, number, number], extra: Uint8Array): [number, number, number] {
  const view = viewOf(extra);
  for (let at = 0; at + 4 <= extra.byteLength; ) {
    let field = at + 4;
    const end = field + view.getUint16(at + 2, true);
    if (view.getUint16(at, true) === ZIP64_EXTRA) {
      return values.map((value) => {
        if (value !== NONE_32 || field + 8 > Math.min(end, extra.byteLength)) return value;
        field += 8;
        return uint64(view, field - 8);
      }) as [number, number, number];
    }
    at = end;
  }
  return values;
}

/** The start of an entry's data. It depends on the local header, whose extra field may differ in length from the directory's. */
async function readLocalHeader({ file, read }: ByteSource, entry: ListedEntry, limit: number): Promise<number> {
  const { name, nameBytes, headerStart } = entry;
  const length = LOCAL_BYTES + nameBytes.byteLength;
  if (headerStart + length > limit)
    throw new TorchFileError(file, `the local header of zip entry "${name}" lies beyond the file's data`);
  const bytes = await read(headerStart, length);
  const view = viewOf(bytes);
  const isSame =
    view.getUint32(0, true) === SIGNATURE.local &&
    view.getUint16(8, true) === STORED &&
    view.getUint16(26, true) === nameBytes.byteLength &&
    nameBytes.every((byte, i) => byte === bytes[LOCAL_BYTES + i]);
  if (!isSame) throw new TorchFileError(file, `byte ${headerStart} is not the local header of zip entry "${name}"`);
  return headerStart + length + view.getUint16(28, true);
}
