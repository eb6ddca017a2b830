/** Whole tensors from the pieces in which they come. */
import { ProtocolError } from '../../src/errors.js';
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
