import { InvalidFrameError } from '../errors.js';
import { type Checksum, createChecksum } from './checksum.js';
import type { MessageSink } from './frame-header.js';
import { MAX_OPEN_TENSORS, MAX_PAYLOAD_BYTES } from './limits.js';
import type { TensorPiece } from './tensor-piece.js';

interface OpenTensor {
  readonly tensor: number;
  sent: number;
  readonly checksum: Checksum;
}

/**
 * Sends tensors as their pieces come, each with a checksum over all its bytes. The caller sends the frame that follows,
 * usually an `end`. The pieces' data belongs to the sink from then on and must not change.
 * Throws the sink's errors, and an `InvalidFrameError` if pieces do not add up to their tensor.
 */
export async function sendTensors(
  sink: MessageSink,
  pieces: AsyncIterable<TensorPiece> | Iterable<TensorPiece>,
): Promise<void> {
  const open = new Map<string, OpenTensor>();
  let next = 0;
  for await (const { name, dtype, shape, bytes, offset, data } of pieces) {
    let state = open.get(name);
    if (!state) {
      if (open.size >= MAX_OPEN_TENSORS) throw new InvalidFrameError(`more than ${MAX_OPEN_TENSORS} tensors are open`);
      state = { tensor: next++, sent: 0, checksum: createChecksum() };
      open.set(name, state);
      await sink.send({ kind: 'tensor', tensor: state.tensor, name, dtype, shape: [...shape], bytes });
    }
    if (offset !== state.sent || offset + data.byteLength > bytes)
      throw new InvalidFrameError(
        `${data.byteLength} bytes at ${offset} do not continue "${name}" (${state.sent} of ${bytes} sent)`,
      );
    for (let start = 0; start < data.byteLength; start += MAX_PAYLOAD_BYTES) {
      const part = data.subarray(start, start + MAX_PAYLOAD_BYTES);
      state.checksum.update(part);
      state.sent += part.byteLength;
      const last = state.sent === bytes ? { checksum: state.checksum.digest() } : {};
      await sink.send({ kind: 'data', tensor: state.tensor, ...last }, part);
    }
    if (state.sent === bytes) open.delete(name);
  }
  const [unfinished] = open.keys();
  if (unfinished !== undefined) throw new InvalidFrameError(`tensor "${unfinished}" was not sent to its end`);
}
