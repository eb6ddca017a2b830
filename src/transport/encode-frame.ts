import { Packr } from 'msgpackr';
import { InvalidFrameError } from '../errors.js';
import { checkMsgpack } from './check-msgpack.js';
import { checkHeader, EMPTY, type Header, hasPayload } from './frame-header.js';
import { LENGTH_BYTES, MAX_HEADER_BYTES, MAX_PAYLOAD_BYTES } from './limits.js';

/** A frame in two parts, so that a payload is never copied to stand behind its header. */
export interface EncodedFrame {
  /** u32 little-endian length of the header, then the header. */
  readonly head: Uint8Array;
  readonly payload: Uint8Array;
}

const packr = new Packr({ useRecords: false });

/** Throws an `InvalidFrameError` for what the peer would refuse. */
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

/** Of the whole frame. */
export const frameBytes = ({ head, payload }: EncodedFrame): number => head.byteLength + payload.byteLength;
