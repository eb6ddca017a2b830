/** Parses and writes the header of a safetensors file. */
import {
  DuplicateKeyError,
  HeaderTooLongError,
  InvalidHeaderError,
  OffsetError,
  SizeMismatchError,
  TruncatedShardError,
} from '../errors.js';
import { byteLength, elementCount, type FloatDtype, floatBytes } from './dtype.js';
import { duplicateKey } from './duplicate-key.js';
import { parseSpan, parseString, type Span, scanObject, wholeText } from './scan-json.js';

/** The limit of the reference implementation (safetensors `MAX_HEADER_SIZE`). */
export const MAX_HEADER_BYTES = 100_000_000;

/** The length field before the header: one little-endian u64. */
export const LENGTH_BYTES = 8;

/** The only key that is not a tensor. */
const METADATA = '__metadata__';

/** One tensor of a shard. `start` and `end` are absolute byte offsets in `file`. */
export interface TensorInfo {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly file: string;
  readonly start: number;
  readonly end: number;
}

/** The content of a header. */
export interface ShardHeader {
  /** Tensors in the order of their data. */
  readonly tensors: readonly TensorInfo[];
  /** `__metadata__`; empty if the header has none. */
  readonly metadata: Readonly<Record<string, string>>;
}

/** The header's length in bytes, from the file's first bytes. Throws an `InvalidHeaderError` or a `HeaderTooLongError`. */
export function parseHeaderLength(prefix: Uint8Array, fileBytes: number, file: string): number {
  if (prefix.byteLength < LENGTH_BYTES) throw new InvalidHeaderError(file, `it has only ${fileBytes} bytes`);
  const length = new DataView(prefix.buffer, prefix.byteOffset).getBigUint64(0, true);
  if (length > BigInt(MAX_HEADER_BYTES)) throw new HeaderTooLongError(file, length, MAX_HEADER_BYTES, 'the limit is');
  if (Number(length) > fileBytes - LENGTH_BYTES)
    throw new HeaderTooLongError(file, length, fileBytes, 'the whole file has');
  return Number(length);
}

/**
 * Parses and checks the JSON part of a header: dtype, shape and offsets of every tensor. No key may occur twice, and the data
 * must fill the rest of the file without holes and overlaps (safetensors format description, "Format"). Throws one of the
 * errors of src/errors/shard-header.ts.
 * @param names an empty set; it gets the tensors' names
 */
export function parseHeader(json: Uint8Array, fileBytes: number, file: string, names = new Set<string>()): ShardHeader {
  const dataStart = LENGTH_BYTES + json.byteLength;
  const tensors: TensorInfo[] = [];
  const share = shapeSharer();
  let metadata: ShardHeader['metadata'] | undefined;
  forEachEntry(json, file, (name, entry) => {
    if (name === METADATA ? metadata : names.has(name)) throw new DuplicateKeyError(file, name);
    if (name === METADATA) {
      metadata = checkMetadata(entry, file);
      return;
    }
    names.add(name);
    tensors.push(parseEntry(name, entry, dataStart, file, share));
  });
  tensors.sort((a, b) => a.start - b.start || a.end - b.end);
  let position = dataStart;
  for (const tensor of tensors) {
    if (tensor.end > fileBytes) throw new TruncatedShardError(file, tensor.name, tensor.end, fileBytes);
    if (tensor.start < position) throw new OffsetError(file, tensor.name, 'its data overlaps the tensor before it');
    if (tensor.start > position)
      throw new OffsetError(file, tensor.name, `${tensor.start - position} unused bytes lie before it`);
    position = tensor.end;
  }
  if (position !== fileBytes)
    throw new InvalidHeaderError(file, `${fileBytes - position} bytes follow the last tensor`);
  return { tensors, metadata: metadata ?? {} };
}

function forEachEntry(json: Uint8Array, file: string, visit: (name: string, entry: unknown) => void): void {
  const bytes = Buffer.from(json.buffer, json.byteOffset, json.byteLength);
  try {
    if (bytes[0] !== 0x7b) throw new InvalidHeaderError(file, 'the header does not begin with "{"');
    scanObject(bytes, wholeText(bytes), (key, span) => {
      const name = parseString(bytes, key);
      const entry = parseSpan(bytes, span);
      const duplicate = hasTwins(entry, bytes, span)
        ? duplicateKey(bytes.toString('utf8', span.start, span.end))
        : undefined;
      if (duplicate !== undefined) throw new DuplicateKeyError(file, duplicate);
      visit(name, entry);
    });
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    throw new InvalidHeaderError(file, `the header is not JSON (${error.message})`);
  }
}

/** A quick check whether an entry may have a key twice: it has more colons than keys. A colon in a string only costs a closer look. */
function hasTwins(entry: unknown, bytes: Buffer, { start, end }: Span): boolean {
  if (!isObject(entry)) return true;
  let colons = 0;
  for (let i = start; i < end; i++) if (bytes[i] === 0x3a) colons++;
  return colons !== Object.keys(entry).length;
}

function checkMetadata(entry: unknown, file: string): Record<string, string> {
  if (isObject(entry) && Object.values(entry).every((value) => typeof value === 'string'))
    return entry as Record<string, string>;
  throw new InvalidHeaderError(file, '"__metadata__" is not a map from string to string');
}

/** Returns a function that gives one shared array for equal shapes: 500 000 tensors have only a few different shapes. */
function shapeSharer(): (shape: readonly number[]) => readonly number[] {
  const known = new Map<number, readonly number[]>();
  return (shape) => {
    const key = shape.reduce((hash, size) => (31 * hash + size) | 0, shape.length);
    const same = known.get(key);
    if (same?.length === shape.length && same.every((size, i) => size === shape[i])) return same;
    known.set(key, shape);
    return shape;
  };
}

function parseEntry(
  name: string,
  entry: unknown,
  dataStart: number,
  file: string,
  share: (shape: readonly number[]) => readonly number[],
): TensorInfo {
  if (!isObject(entry)) throw new InvalidHeaderError(file, `the entry of tensor "${name}" is not an object`);
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== 'string') throw new InvalidHeaderError(file, `tensor "${name}" has no dtype`);
  if (!isIndexArray(shape)) throw new InvalidHeaderError(file, `the shape of tensor "${name}" is not a list of sizes`);
  if (!isIndexArray(offsets) || offsets.length !== 2)
    throw new OffsetError(file, name, 'its data_offsets are not two offsets');
  const [start, end] = offsets as [number, number];
  if (start > end) throw new OffsetError(file, name, `it ends (${end}) before it begins (${start})`);
  const expected = byteLength(dtype, shape);
  if (expected !== undefined && expected !== end - start)
    throw new SizeMismatchError(file, name, expected, end - start);
  return { name, dtype, shape: share(shape), file, start: dataStart + start, end: dataStart + end };
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

const isIndexArray = (value: unknown): value is number[] =>
  Array.isArray(value) && value.every((item) => Number.isSafeInteger(item) && (item as number) >= 0);

/** A tensor for `encodeHeader`. */
export interface TensorSpec {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: number;
}

/** A tensor of floats. */
export const floatTensor = (name: string, dtype: FloatDtype, ...shape: number[]): TensorSpec => ({
  name,
  dtype,
  shape,
  bytes: elementCount(shape) * floatBytes(dtype),
});

/**
 * Encodes the length field and the header. Spaces at its end align the data to 8 bytes.
 * @param tensors in the order of their data
 * @param least least total bytes; the padding leaves room for a longer header later
 */
export function encodeHeader(
  tensors: readonly TensorSpec[],
  metadata: Readonly<Record<string, string>> = {},
  least = 0,
): Uint8Array {
  // Some loaders refuse a file without "format".
  const header: Record<string, unknown> = Object.create(null);
  header.__metadata__ = { format: 'pt', ...metadata };
  let offset = 0;
  for (const { name, dtype, shape, bytes } of tensors) {
    header[name] = { dtype, shape, data_offsets: [offset, offset + bytes] };
    offset += bytes;
  }
  const json = new TextEncoder().encode(JSON.stringify(header));
  const padded = Math.ceil(Math.max(json.byteLength, least - LENGTH_BYTES) / 8) * 8;
  const encoded = new Uint8Array(LENGTH_BYTES + padded).fill(0x20);
  new DataView(encoded.buffer).setBigUint64(0, BigInt(padded), true);
  encoded.set(json, LENGTH_BYTES);
  return encoded;
}
