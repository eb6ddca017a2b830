/** The manifest of a result: the SHA-256 of every part of every file. It shows which bytes have changed. */
import { z } from 'zod';
import { isPlainPath } from '../checkpoint/plain-path.js';
import { DamagedManifestError, IncompleteOutputError } from '../errors.js';
import { listOf } from '../list-of.js';
import { READ_BYTES } from '../sources/files.js';
import { checkSeal, seal } from './seal.js';
import { sha256 } from './sha256.js';

export const MANIFEST_FILE = 'mobe.manifest.json';

/** A range of at most `READ_BYTES` bytes, and its hash in hexadecimal. */
export interface HashedPart {
  /** Byte offsets; `end` is exclusive. */
  readonly start: number;
  readonly end: number;
  readonly sha256: string;
}

/** A range of a file. In a shard it lies in the header or in one tensor. */
export interface ManifestPart extends HashedPart {
  /** The tensor that the bytes belong to; absent for headers and in files that are not shards. */
  readonly tensor?: string;
}

/** For each file, relative to the folder, its parts in order. They cover the file without a gap. */
export type Manifest = ReadonlyMap<string, readonly ManifestPart[]>;

/** The schema of a `HashedPart`. */
export const hashedPart = z.strictObject({
  start: z.int().nonnegative(),
  end: z.int().positive(),
  sha256: z.string().regex(/^[0-9a-f]{64}$/),
});

const partSchema = hashedPart
  .extend({ tensor: z.string().optional() })
  // The limit bounds the memory of a reader, which reads a part at once.
  .refine(({ start, end }) => end > start && end - start <= READ_BYTES, 'a part of an impossible size');

const manifestSchema = z.object({
  version: z.literal(1),
  algorithm: z.literal('sha256'),
  // A list and not a record, because a file may be called `__proto__`.
  files: listOf(
    z.strictObject({ file: z.string().refine(isPlainPath, 'not a plain path'), parts: listOf(partSchema) }),
  ),
});

/** Hashes bytes in parts of at most `READ_BYTES`. `start` is their offset in the file or tensor. */
export async function hashParts(bytes: Uint8Array, start: number): Promise<HashedPart[]> {
  const parts: HashedPart[] = [];
  for (let from = 0; from < bytes.byteLength; from += READ_BYTES) {
    const slice = bytes.subarray(from, from + READ_BYTES);
    parts.push({ start: start + from, end: start + from + slice.byteLength, sha256: await sha256(slice) });
  }
  return parts;
}

/**
 * Encodes a manifest as JSON with a checksum of its own, files sorted by name, one part on each line. Throws
 * `IncompleteOutputError` if the parts of a file leave a gap or overlap.
 * @param parts the parts of each file, in any order
 */
export function encodeManifest(parts: Manifest): string {
  const names = [...parts.keys()].sort();
  const files = names.map((file) => {
    const sorted = [...(parts.get(file) ?? [])].sort((a, b) => a.start - b.start);
    const broken = brokenAt(sorted);
    if (broken) throw new IncompleteOutputError(broken.part.tensor ?? file, broken.expected, broken.part.start);
    const lines = sorted.map((part) => `\n${JSON.stringify(part)}`).join(',');
    return `\n{"file": ${JSON.stringify(file)}, "parts": [${lines}]}`;
  });
  return seal(`{\n  "version": 1,\n  "algorithm": "sha256",\n  "files": [${files.join(',')}]\n}`);
}

/** Decodes a manifest. Throws `DamagedManifestError` if its checksum or its content is wrong. */
export function decodeManifest(bytes: Uint8Array, path: string): Manifest {
  if (checkSeal(bytes) !== 'sound') throw new DamagedManifestError(path, 'its own checksum is wrong');
  let files: z.infer<typeof manifestSchema>['files'];
  try {
    ({ files } = manifestSchema.parse(JSON.parse(new TextDecoder().decode(bytes))));
  } catch {
    throw new DamagedManifestError(path, 'it is not what mobe writes');
  }
  for (const { file, parts } of files) {
    if (brokenAt(parts)) throw new DamagedManifestError(path, `the parts of ${file} do not cover it`);
  }
  return new Map(files.map(({ file, parts }) => [file, parts as ManifestPart[]]));
}

/** Finds the first part that does not begin where the previous one ends. */
function brokenAt(parts: ReadonlyArray<Pick<ManifestPart, 'start' | 'end'> & { tensor?: string | undefined }>) {
  let expected = 0;
  for (const part of parts) {
    if (part.start !== expected) return { part, expected };
    expected = part.end;
  }
  return undefined;
}
