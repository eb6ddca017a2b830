/** Whole tensors from the pieces in which they come. */
import { ProtocolError } from '../../src/errors.js';
import { Gatherer } from '../../src/transport/gather.js';
import type { TensorPiece } from '../../src/transport/tensor-piece.js';

/** Tensors that are expected, by name, with their exact sizes: memory is taken for nothing else. */
export function collector(peer: string, expected: ReadonlyMap<string, number>) {
  const found = new Map<string, Uint8Array<ArrayBuffer>>();
  const missing = new Map(expected);
  return {
    put({ name, bytes, offset, data }: TensorPiece): void {
      if (expected.get(name) !== bytes)
        throw new ProtocolError(
          peer,
          `it sends tensor "${name}" of ${bytes} bytes, ${expected.get(name) ?? 'none'} expected`,
        );
      const target = found.get(name) ?? new Uint8Array(bytes);
      found.set(name, target);
      target.set(data, offset);
      if (offset + data.byteLength === bytes) missing.delete(name);
    },
    /** All of them. Throws a `ProtocolError` where one did not come. */
    finish(): (name: string) => Uint8Array<ArrayBuffer> {
      const [name] = missing.keys();
      if (name !== undefined) throw new ProtocolError(peer, `it did not send tensor "${name}"`);
      return (wanted) => found.get(wanted) as Uint8Array<ArrayBuffer>;
    },
  };
}

/**
 * The next tensor, whose pieces follow each other. Throws a `ProtocolError` where it does not come, is broken off, or has more than
 * `most` bytes.
 * @param what it is, for people
 * @param first piece, where it was read already
 */
export async function takeTensor(
  peer: string,
  pieces: AsyncIterator<TensorPiece>,
  what: string,
  most: number,
  first?: TensorPiece,
): Promise<Uint8Array> {
  const next = async (): Promise<TensorPiece> => {
    const { value, done } = await pieces.next();
    if (done) throw new ProtocolError(peer, `${what} did not come`);
    return value;
  };
  let piece = first ?? (await next());
  const { name, bytes } = piece;
  if (bytes > most) throw new ProtocolError(peer, `${what} has ${bytes} bytes`);
  const gathered = new Gatherer(peer, what, bytes);
  for (;;) {
    gathered.add(piece.data);
    if (gathered.byteLength === bytes) return gathered.bytes;
    piece = await next();
    if (piece.name !== name || piece.offset !== gathered.byteLength)
      throw new ProtocolError(peer, `${what} is broken off by "${piece.name}"`);
  }
}
