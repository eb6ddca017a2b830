import { Packr } from 'msgpackr';
import { InvalidFrameError } from '../errors.js';
import { checkMsgpack } from './check-msgpack.js';
import { checkHeader, EMPTY, type Header, hasPayload } from './frame-header.js';
import { LENGTH_BYTES, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES } from './limits.js';

/** A frame in two parts, so that the payload need not be copied behind its header. */
export interface EncodedFrame {
  /** The header's length (u32, little-endian), then the header. */
  readonly head: Uint8Array;
  readonly payload: Uint8Array;
}

const packr = new Packr({ useRecords: false });

/** A header and its payload as a frame. Throws an `InvalidFrameError` for a frame that a peer would refuse. */
export function encodeFrame(header: Header, payload: Uint8Array = EMPTY): EncodedFrame {
  checkHeader(header);
  if (payload.byteLength > MAX_PAYLOAD_BYTES || payload.byteLength > 0 !== hasPayload(header))
    throw new InvalidFrameError(`a ${header.kind} frame cannot carry ${payload.byteLength} bytes`);
  const packed = packr.pack(header);
  if (packed.byteLength > MAX_HEADER_BYTES)
    throw new InvalidFrameError(
      `the ${header.kind} header has ${packed.byteLength} bytes, at most ${MAX_HEADER_BYTES}`,
    );
  checkMsgpack(packed);
  const head = Buffer.allocUnsafe(LENGTH_BYTES + packed.byteLength);
  head.writeUInt32LE(packed.byteLength);
  head.set(packed, LENGTH_BYTES);
  return { head, payload };
}

/** Size of the whole frame, bytes. */
export const frameBytes = ({ head, payload }: EncodedFrame): number => head.byteLength + payload.byteLength;
