import { ChecksumError, ProtocolError, RemoteError, TruncatedStreamError } from '../errors.js';
import { type Checksum, createChecksum } from './checksum.js';
import type { MessageSource, NumberedHeader } from './header.js';
import { EMPTY } from './header.js';
import { MAX_OPEN_TENSORS } from './limits.js';
import type { TensorPiece } from './tensor-piece.js';

type TensorHeader = Extract<NumberedHeader, { kind: 'tensor' }>;

interface OpenTensor {
  readonly header: TensorHeader;
  received: number;
  readonly checksum: Checksum;
}

/**
 * The pieces of tensors up to the next `end`, whose value is returned. A piece is dealt with when the next one is asked
 * for. A tensor's last piece is handed on only after its checksum was found right: whoever counts bytes never takes a
 * damaged tensor for a whole one.
 * Throws a `RemoteError` when the peer reports a failure, `ChecksumError`, `ProtocolError`, and what ends the source.
 */
export async function* receiveTensors(
  source: MessageSource,
  onEvent: (value: unknown) => void = () => {},
): AsyncGenerator<TensorPiece, unknown> {
  const { peer } = source;
  const open = new Map<number, OpenTensor>();
  let next = 0;
  for (;;) {
    const message = await source.receive();
    if (!message) throw new TruncatedStreamError(peer);
    const { header, payload } = message;
    switch (header.kind) {
      case 'tensor':
        if (header.tensor !== next++)
          throw new ProtocolError(peer, `tensor ${header.tensor} comes as number ${next - 1}`);
        if (open.size >= MAX_OPEN_TENSORS)
          throw new ProtocolError(peer, `more than ${MAX_OPEN_TENSORS} tensors are open`);
        if (header.bytes === 0) yield piece(header, 0, EMPTY);
        else open.set(header.tensor, { header, received: 0, checksum: createChecksum() });
        break;
      case 'data': {
        const state = open.get(header.tensor);
        if (!state) throw new ProtocolError(peer, `it goes on with tensor ${header.tensor}, which is not under way`);
        const { header: tensor, received: offset } = state;
        state.received += payload.byteLength;
        state.checksum.update(payload);
        if (state.received > tensor.bytes)
          throw new ProtocolError(peer, `tensor "${tensor.name}" has more than its ${tensor.bytes} bytes`);
        if ((state.received === tensor.bytes) !== (header.checksum !== undefined))
          throw new ProtocolError(peer, `tensor "${tensor.name}" has its checksum in another frame than its last`);
        if (header.checksum && !state.checksum.digest().every((byte, i) => byte === header.checksum?.[i]))
          throw new ChecksumError(peer, tensor.name);
        if (state.received === tensor.bytes) open.delete(header.tensor);
        yield piece(tensor, offset, payload);
        break;
      }
      case 'event':
        onEvent(header.value);
        break;
      case 'failure':
        throw new RemoteError(peer, header.name, header.message);
      case 'end':
        if (open.size > 0) throw new ProtocolError(peer, `it ends in the middle of ${open.size} tensor(s)`);
        return header.value;
      default:
        throw new ProtocolError(peer, `a ${header.kind} frame comes among tensors`);
    }
  }
}

const piece = ({ name, dtype, shape, bytes }: TensorHeader, offset: number, data: Uint8Array): TensorPiece => ({
  name,
  dtype,
  shape,
  bytes,
  offset,
  data,
});
