/** JSON that may be too large for a header, sent as one tensor of bytes. */
import { ProtocolError } from '../errors.js';
import { Gatherer } from './gather.js';
import type { Exchange } from './requests.js';
import { type TensorPiece, wholePiece } from './tensor-piece.js';

/** A JSON value as a tensor of bytes in one piece. */
export const jsonPiece = (value: unknown, name = 'json'): TensorPiece =>
  wholePiece(name, Buffer.from(JSON.stringify(value)));

/**
 * The JSON value that a tensor holds. Throws a `ProtocolError` if the bytes are not JSON or `parse` throws.
 * @param what name of the value in errors
 * @param parse checks the value and gives it its type
 */
export function readJson<T>(peer: string, what: string, bytes: Uint8Array, parse: (value: unknown) => T): T {
  try {
    return parse(JSON.parse(new TextDecoder().decode(bytes)));
  } catch {
    throw new ProtocolError(peer, `${what} is not one`);
  }
}

/**
 * Receives an answer that is JSON. Throws a `ProtocolError` if it has more than `most` bytes.
 * @param what name of the answer in errors
 */
export function jsonAnswer(peer: string, what: string, most: number) {
  const gathered = new Gatherer(peer, what, most);
  return {
    exchange: { onPiece: ({ data }) => gathered.add(data) } satisfies Exchange,
    /** The answer after `parse`; undefined if none came. */
    read<T>(parse: (value: unknown) => T): T | undefined {
      return gathered.byteLength ? readJson(peer, what, gathered.bytes, parse) : undefined;
    },
  };
}
