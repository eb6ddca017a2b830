/**
 * Frames one way over plain bytes: a pipe, ssh, netcat. The length of each frame (u32, little-endian) stands before it. The
 * first frame is a hello and the last a close. Nothing is acknowledged: a full pipe slows the writer down.
 */
import type { Readable, Writable } from 'node:stream';
import {
  InvalidFrameError,
  ProtocolError,
  StreamWriteError,
  TruncatedStreamError,
  WrongServiceError,
} from '../errors.js';
import { helloError } from './channel.js';
import { type DecodedFrame, decodeFrame, headerLength } from './decode-frame.js';
import { encodeFrame, frameBytes } from './encode-frame.js';
import {
  EMPTY,
  type Header,
  isNumbered,
  type MessageSink,
  type MessageSource,
  type NumberedHeader,
} from './frame-header.js';
import { LENGTH_BYTES, MAX_FRAME_BYTES, MIN_CREDIT_BYTES, PROTOCOL_VERSION } from './limits.js';

/** A byte stream cannot be resumed, so it needs no session. */
const NO_SESSION = '0'.repeat(32);

/** The writing end of a byte stream. */
export interface ByteStreamSink extends MessageSink {
  /** Sends the close frame and ends the stream. */
  close(): Promise<void>;
}

/** Writes messages to a stream. Its functions throw a `StreamWriteError` if the reading side goes away. */
export function writeByteStream(stream: Writable, service: string): ByteStreamSink {
  let failure: Error | undefined;
  let sent = 0;
  stream.on('error', (error) => {
    failure ??= error;
  });
  const write = async (header: Header, payload: Uint8Array = EMPTY): Promise<void> => {
    const frame = encodeFrame(header, payload);
    const length = Buffer.allocUnsafe(LENGTH_BYTES);
    length.writeUInt32LE(frameBytes(frame));
    stream.cork();
    stream.write(length);
    stream.write(frame.head);
    if (payload.byteLength > 0) stream.write(payload);
    stream.uncork();
    if (stream.writableNeedDrain) await either(stream, 'drain', 'close');
    if (failure || stream.destroyed) throw new StreamWriteError(failure?.message ?? 'it was closed');
  };
  const greeted = write({
    kind: 'hello',
    protocol: PROTOCOL_VERSION,
    service,
    session: NO_SESSION,
    resume: false,
    received: 0,
    credit: MIN_CREDIT_BYTES,
  });
  greeted.catch(() => {}); // the first `send` throws it
  return {
    async send(header, payload) {
      await greeted;
      await write({ ...header, seq: sent } as NumberedHeader, payload);
      sent++;
    },
    async close() {
      await greeted;
      await write({ kind: 'close', sent });
      stream.end();
      if (!stream.writableFinished) await either(stream, 'finish', 'close');
    },
  };
}

/** Resolves at the first of two events. (`events.once` would leave a listener for the other event behind.) */
const either = (stream: Writable, one: string, other: string): Promise<void> =>
  new Promise((resolve) => {
    if (stream.closed) return resolve();
    const done = (): void => {
      stream.off(one, done);
      stream.off(other, done);
      resolve();
    };
    stream.once(one, done);
    stream.once(other, done);
  });

/**
 * Reads messages from a stream. `receive` throws a `TruncatedStreamError`, `ProtocolError`, `ProtocolVersionError` or
 * `WrongServiceError`.
 * @param peer name of the stream in errors
 */
export function readByteStream(stream: Readable, service: string, peer: string): MessageSource {
  const frames = readFrames(stream);
  let greeted = false;
  let closed = false;
  let received = 0;
  const next = async (): Promise<DecodedFrame> => {
    try {
      const { value, done } = await frames.next();
      if (done) throw new TruncatedStreamError(peer);
      return value;
    } catch (error) {
      throw error instanceof InvalidFrameError ? helloError(peer, error) : error;
    }
  };
  return {
    peer,
    async receive() {
      if (closed) return undefined;
      if (!greeted) {
        const { header } = await next();
        if (header.kind !== 'hello') throw new ProtocolError(peer, `its first frame is a ${header.kind} frame`);
        if (header.service !== service) throw new WrongServiceError(peer, header.service, service);
        greeted = true;
      }
      const { header, payload } = await next();
      if (isNumbered(header)) {
        if (header.seq !== received) throw new ProtocolError(peer, `frame ${header.seq} comes as number ${received}`);
        received++;
        return { header, payload };
      }
      if (header.kind !== 'close') throw new ProtocolError(peer, `a ${header.kind} frame comes in a one-way stream`);
      if (header.sent !== received) throw new TruncatedStreamError(peer);
      closed = true;
      stream.destroy(); // an open stdin would keep the process running
      return undefined;
    },
  };
}

/** Cuts bytes into frames. A last frame that is not complete is dropped. Throws an `InvalidFrameError`. */
async function* readFrames(stream: Readable): AsyncGenerator<DecodedFrame, undefined> {
  const take = byteTaker(stream);
  for (;;) {
    const prefix = await take(LENGTH_BYTES);
    if (!prefix) return;
    const length = new DataView(prefix.buffer, prefix.byteOffset).getUint32(0, true);
    if (length < LENGTH_BYTES || length > MAX_FRAME_BYTES)
      throw new InvalidFrameError(`it has ${length} bytes, at most ${MAX_FRAME_BYTES} are allowed`);
    const start = await take(LENGTH_BYTES);
    if (!start) return;
    const headLength = headerLength(start);
    if (LENGTH_BYTES + headLength > length) throw new InvalidFrameError('its header is longer than it');
    const packed = await take(headLength);
    const payload = await take(length - LENGTH_BYTES - headLength);
    if (!packed || !payload) return;
    yield decodeFrame([Buffer.concat([start, packed]), payload]);
  }
}

/** A function that reads exactly `bytes` bytes into new memory; undefined if the stream ends before. */
function byteTaker(stream: Readable): (bytes: number) => Promise<Uint8Array | undefined> {
  const chunks = stream[Symbol.asyncIterator]() as AsyncIterator<Uint8Array>;
  let rest: Uint8Array = EMPTY;
  return async (bytes) => {
    const target = Buffer.allocUnsafe(bytes);
    for (let done = 0; done < bytes; ) {
      if (rest.byteLength === 0) {
        const { value, done: ended } = await chunks.next();
        if (ended) return undefined;
        rest = value;
      }
      const part = rest.subarray(0, bytes - done);
      target.set(part, done);
      done += part.byteLength;
      rest = rest.subarray(part.byteLength);
    }
    return target;
  };
}
