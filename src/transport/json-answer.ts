/** Answers that may be larger than a header: JSON, as one tensor of bytes. */
import { ProtocolError } from '../errors.js';
import type { Exchange } from './requests.js';
import { type TensorPiece, wholePiece } from './tensor-piece.js';

export const jsonPiece = (value: unknown): TensorPiece => wholePiece('json', Buffer.from(JSON.stringify(value)));

/**
 * Takes such an answer. Throws a `ProtocolError` where it has more than `most` bytes.
 * @param what it is, for people
 */
export function jsonAnswer(peer: string, what: string, most: number) {
  const parts: Uint8Array[] = [];
  return {
    exchange: {
      onPiece({ bytes, data }) {
        if (bytes > most) throw new ProtocolError(peer, `${what} has ${bytes} bytes`);
        parts.push(data);
      },
    } satisfies Exchange,
    /** As `parse` has it, which throws where it is something else; undefined where none came. */
    read<T>(parse: (value: unknown) => T): T | undefined {
      if (parts.length === 0) return undefined;
      try {
        return parse(JSON.parse(Buffer.concat(parts).toString()));
      } catch {
        throw new ProtocolError(peer, `${what} is not one`);
      }
    },
  };
}
