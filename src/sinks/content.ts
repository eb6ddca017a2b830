/** Bytes that are sent: a file of this machine, or a text. */
import { createHash } from 'node:crypto';
import { ReadError } from '../errors.js';
import { type FileSystem, readAll } from '../file-system.js';
import type { Body } from '../sources/web/web-client.js';

/** A request holds at most two pieces in memory. */
const PIECE_BYTES = 512 * 1024;

export interface Content {
  readonly bytes: number;
  /** The bytes from `start` to `end`, in pieces. */
  pieces(start: number, end: number): AsyncIterable<Uint8Array>;
}

export function fileContent(path: string, bytes: number, fs: FileSystem): Content {
  return {
    bytes,
    async *pieces(start, end) {
      const file = await fs.open(path, 'r');
      try {
        for (let at = start; at < end; at += PIECE_BYTES) {
          const piece = new Uint8Array(Math.min(PIECE_BYTES, end - at));
          if (!(await readAll(file, piece, at))) throw new ReadError(path, at, 'the file ends there');
          yield piece;
        }
      } finally {
        await file.close();
      }
    },
  };
}

export function textContent(text: string): Content {
  const bytes = new TextEncoder().encode(text);
  return {
    bytes: bytes.byteLength,
    async *pieces(start, end) {
      yield bytes.subarray(start, end);
    },
  };
}

/** A range of the content as the body of a request. */
export const bodyOf = (content: Content, start = 0, end = content.bytes): Body => ({
  bytes: end - start,
  chunks: () => content.pieces(start, end),
});

/** The hash of a range in hexadecimal. */
export async function hashOf(
  content: Content,
  algorithm: 'sha256' | 'sha1' | 'md5',
  start = 0,
  end = content.bytes,
  before = '',
): Promise<string> {
  const hash = createHash(algorithm).update(before);
  for await (const piece of content.pieces(start, end)) hash.update(piece);
  return hash.digest('hex');
}

export async function wholeOf(content: Content, end = content.bytes): Promise<Buffer> {
  const pieces: Uint8Array[] = [];
  for await (const piece of content.pieces(0, end)) pieces.push(piece);
  return Buffer.concat(pieces);
}
