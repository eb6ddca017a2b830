/** JSON that may be larger than a header: one tensor of bytes. */
import { ProtocolError } from '../errors.js';
import { Gatherer } from './gather.js';
import type { Exchange } from './requests.js';
import { type TensorPiece, wholePiece } from './tensor-piece.js';

export const jsonPiece = (value: unknown, name = 'json'): TensorPiece =>
  wholePiece(name, Buffer.from(JSON.stringify(value)));

/**
 * What a tensor holds, as `parse` has it, which throws where it is something else: that is a `ProtocolError`.
 * @param what it is, for people
 */
export function readJson<T>(peer: string, what: string, bytes: Uint8Array, parse: (value: unknown) => T): T {
  try {
    return parse(JSON.parse(new TextDecoder().decode(bytes)));
  } catch {
    throw new ProtocolError(peer, `${what} is not one`);
  }
}

/**
 * Takes an answer of JSON. Throws a `ProtocolError` where it has more than `most` bytes.
 * @param what it is, for people
 */
export function jsonAnswer(peer: string, what: string, most: number) {
  const gathered = new Gatherer(peer, what, most);
  return {
    exchange: { onPiece: ({ data }) => gathered.add(data) } satisfies Exchange,
    /** As `parse` has it; undefined where none came. */
    read<T>(parse: (value: unknown) => T): T | undefined {
      return gathered.byteLength ? readJson(peer, what, gathered.bytes, parse) : undefined;
    },
  };
}
