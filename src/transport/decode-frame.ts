import { Unpackr } from 'msgpackr';
import { InvalidFrameError } from '../errors.js';
import { checkMsgpack } from './check-msgpack.js';
import { checkHeader, type Header, hasPayload } from './frame-header.js';
import { LENGTH_BYTES, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES } from './limits.js';

/** A frame whose header was checked. */
export interface DecodedFrame {
  readonly header: Header;
  readonly payload: Uint8Array;
  /** Size of the whole frame, bytes. */
  readonly bytes: number;
}

const unpackr = new Unpackr({ useRecords: false, int64AsType: 'number' });

/**
 * Reads one frame that arrived in any number of parts. A payload that is a part of its own, as this program sends it, is not
 * copied. Throws an `InvalidFrameError`.
 */
export function decodeFrame(parts: readonly Uint8Array[]): DecodedFrame {
  const [packed, payload] = split(parts);
  checkMsgpack(packed);
  const header = checkHeader(unpack(packed));
  if (payload.byteLength > MAX_PAYLOAD_BYTES)
    throw new InvalidFrameError(`it carries ${payload.byteLength} bytes, at most ${MAX_PAYLOAD_BYTES} are allowed`);
  if (payload.byteLength > 0 !== hasPayload(header))
    throw new InvalidFrameError(`a ${header.kind} frame carries ${payload.byteLength} bytes`);
  return { header, payload, bytes: LENGTH_BYTES + packed.byteLength + payload.byteLength };
}

function unpack(packed: Uint8Array): unknown {
  try {
    return unpackr.unpack(packed);
  } catch (error) {
    // The bytes are valid MessagePack that cannot be a JavaScript value, such as a map with a list as a key.
    throw new InvalidFrameError(`its header cannot be read (${(error as Error).message.split('\n')[0]})`);
  }
}

/** The header and the payload. */
function split(parts: readonly Uint8Array[]): [Uint8Array, Uint8Array] {
  const [first, second] = parts;
  if (parts.length === 2 && first && second && first.byteLength >= LENGTH_BYTES) {
    if (LENGTH_BYTES + headerLength(first) === first.byteLength) return [first.subarray(LENGTH_BYTES), second];
  }
  const frame = parts.length === 1 && first ? first : Buffer.concat(parts);
  if (frame.byteLength < LENGTH_BYTES) throw new InvalidFrameError(`it has only ${frame.byteLength} bytes`);
  const end = LENGTH_BYTES + headerLength(frame);
  if (frame.byteLength < end) throw new InvalidFrameError(`its header ends at byte ${end}, it at ${frame.byteLength}`);
  return [frame.subarray(LENGTH_BYTES, end), frame.subarray(end)];
}

/** The header's length in bytes, from the u32 that starts a frame. Throws an `InvalidFrameError` if it is too large. */
export function headerLength(start: Uint8Array): number {
  const length = new DataView(start.buffer, start.byteOffset, LENGTH_BYTES).getUint32(0, true);
  if (length > MAX_HEADER_BYTES)
    throw new InvalidFrameError(`its header has ${length} bytes, at most ${MAX_HEADER_BYTES} are allowed`);
  return length;
}
