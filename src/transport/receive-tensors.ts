import { ChecksumError, ProtocolError, RemoteError, TruncatedStreamError } from '../errors.js';
import { type Checksum, createChecksum } from './checksum.js';
import { EMPTY, type Message, type MessageSource, type NumberedHeader } from './frame-header.js';
import { MAX_OPEN_TENSORS } from './limits.js';
import type { TensorPiece } from './tensor-piece.js';

type TensorHeader = Extract<NumberedHeader, { kind: 'tensor' }>;
type DataHeader = Extract<NumberedHeader, { kind: 'data' }>;

interface OpenTensor {
  readonly header: TensorHeader;
  received: number;
  readonly checksum: Checksum;
}

/**
 * Pieces of tensors up to the next `end`; the iterator returns that frame's value. A piece counts as processed when the next
 * one is requested. The last piece of a tensor is handed out only after the checksum was found right. So a damaged tensor
 * never looks complete.
 * Throws a `RemoteError` if the peer reports a failure, a `ChecksumError`, a `ProtocolError`, or the error that ended the source.
 *
 * This is not a generator: a generator would hold the last piece while it waits for the next one, and collecting megabytes
 * that live that long takes V8 more time than everything done here.
 */
export function receiveTensors(
  source: MessageSource,
  onEvent: (value: unknown) => void = () => {},
): AsyncIterableIterator<TensorPiece, unknown> {
  const read = createReader(source.peer, onEvent);
  let ended = false;
  const next = async (): Promise<IteratorResult<TensorPiece, unknown>> => {
    while (!ended) {
      ended = true; // stays true if this throws
      const result = read(await source.receive());
      ended = result?.done ?? false;
      if (result) return result;
    }
    return { done: true, value: undefined };
  };
  const iterator: AsyncIterableIterator<TensorPiece, unknown> = {
    next,
    async return(value) {
      ended = true;
      return { done: true, value };
    },
    [Symbol.asyncIterator]: () => iterator,
  };
  return iterator;
}

type Read = (message: Message | undefined) => IteratorResult<TensorPiece, unknown> | undefined;

/** A function that takes the messages in order and returns the piece that a message holds. */
function createReader(peer: string, onEvent: (value: unknown) => void): Read {
  const open = new Map<number, OpenTensor>();
  let next = 0;

  const start = (tensor: TensorHeader): TensorPiece | undefined => {
    if (tensor.tensor !== next) throw new ProtocolError(peer, `tensor ${tensor.tensor} comes as number ${next}`);
    next++;
    if (tensor.bytes === 0) return piece(tensor, 0, EMPTY);
    if (open.size >= MAX_OPEN_TENSORS) throw new ProtocolError(peer, `more than ${MAX_OPEN_TENSORS} tensors are open`);
    open.set(tensor.tensor, { header: tensor, received: 0, checksum: createChecksum() });
    return undefined;
  };

  const proceed = (header: DataHeader, payload: Uint8Array): TensorPiece => {
    const state = open.get(header.tensor);
    if (!state) throw new ProtocolError(peer, `it goes on with tensor ${header.tensor}, which is not under way`);
    const { header: tensor, received: offset, checksum } = state;
    state.received += payload.byteLength;
    if (state.received > tensor.bytes)
      throw new ProtocolError(peer, `tensor "${tensor.name}" has more than its ${tensor.bytes} bytes`);
    const isLast = state.received === tensor.bytes;
    if (isLast !== (header.checksum !== undefined))
      throw new ProtocolError(peer, `tensor "${tensor.name}" has its checksum in another frame than its last`);
    checksum.update(payload);
    if (isLast) {
      open.delete(header.tensor);
      if (!checksum.digest().every((byte, i) => byte === header.checksum?.[i]))
        throw new ChecksumError(peer, tensor.name);
    }
    return piece(tensor, offset, payload);
  };

  return (message) => {
    if (!message) throw new TruncatedStreamError(peer);
    const { header, payload } = message;
    let found: TensorPiece | undefined;
    switch (header.kind) {
      case 'tensor':
        found = start(header);
        break;
      case 'data':
        found = proceed(header, payload);
        break;
      case 'event':
        onEvent(header.value);
        break;
      case 'failure':
        throw new RemoteError(peer, header.name, header.message);
      case 'end':
        if (open.size > 0) throw new ProtocolError(peer, `it ends in the middle of ${open.size} tensor(s)`);
        return { done: true, value: header.value };
      default:
        throw new ProtocolError(peer, `a ${header.kind} frame comes among tensors`);
    }
    return found && { done: false, value: found };
  };
}

const piece = ({ name, dtype, shape, bytes }: TensorHeader, offset: number, data: Uint8Array): TensorPiece => ({
  name,
  dtype,
  shape,
  bytes,
  offset,
  data,
});
