/** Assembles tensors from the pieces in which they arrive. */
import { ProtocolError } from '../../src/errors.js';
import { Gatherer } from '../../src/transport/gather.js';
import type { TensorPiece } from '../../src/transport/tensor-piece.js';

/**
 * Collects tensors whose names and exact bytes are known. It allocates memory for no others: `put` throws a `ProtocolError` for
 * a tensor that is not expected.
 */
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
    /** Returns a function that gives each tensor. Throws a `ProtocolError` if one did not come. */
    finish(): (name: string) => Uint8Array<ArrayBuffer> {
      const [name] = missing.keys();
      if (name !== undefined) throw new ProtocolError(peer, `it did not send tensor "${name}"`);
      return (wanted) => found.get(wanted) as Uint8Array<ArrayBuffer>;
    },
  };
}

/**
 * Takes the next tensor, whose pieces follow each other. Throws a `ProtocolError` if it does not come, is incomplete, or has
 * more than `most` bytes.
 * @param what names the tensor in errors
 * @param first the first piece, if the caller has already read it
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
