/** Frames on one WebSocket. A channel outlives its links. */
import type { Socket } from 'node:net';
import type { ClientOptions, ServerOptions, WebSocket } from 'ws';
import { InvalidFrameError } from '../errors.js';
import { type DecodedFrame, decodeFrame } from './decode-frame.js';
import type { EncodedFrame } from './encode-frame.js';
import { MAX_FRAGMENTS, MAX_FRAME_BYTES, WRITE_AHEAD_BYTES } from './limits.js';

export interface Link {
  /** Sends a frame; `flushed` is called once the system has taken it, or never. */
  write(frame: EncodedFrame, flushed?: () => void): void;
  /** Given to the socket and not yet taken by the system. */
  readonly bufferedBytes: number;
  /** Grows with every byte that arrives, in the middle of frames too: on a slow line one may take minutes. */
  readonly bytesRead: number;
  /** Says goodbye and closes. */
  close(): void;
  /** Closes at once. */
  destroy(): void;
  onFrame: (frame: DecodedFrame) => void;
  /** The peer sent what is not a frame. */
  onInvalid: (error: InvalidFrameError) => void;
  /** Called once. */
  onClose: (reason: string) => void;
}

/** For both ends. Compression would cost more than it saves: weights do not compress. (`maxFragments` is not in the types.) */
export const SOCKET_OPTIONS: Pick<ClientOptions & ServerOptions, 'perMessageDeflate' | 'maxPayload' | 'autoPong'> & {
  readonly maxFragments: number;
} = {
  perMessageDeflate: false,
  maxPayload: MAX_FRAME_BYTES,
  maxFragments: MAX_FRAGMENTS,
  autoPong: false, // answered below, unless the answers pile up
};

/** A peer that does not close in return within this time is cut off. */
const CLOSE_TIMEOUT_MS = 2_000;

/**
 * Once in a process, before it receives. glibc hands every freed buffer of a frame's size back to the system and gets the next one
 * page by page, which takes longer than the checksum, until one of nearly 32 MiB was freed: then it keeps up to twice as much for
 * the next (mallopt(3), M_MMAP_THRESHOLD). This one is never touched, so it takes no memory, and V8 soon frees it.
 */
function keepFreedMemory(): void {
  if (!kept) new Uint8Array(31 * 2 ** 20);
  kept = true;
}
let kept = false;

/** @param socket the connection underneath `ws` */
export function createLink(ws: WebSocket, socket: Socket): Link {
  keepFreedMemory();
  const binary = { binary: true, compress: false };
  const link: Link = {
    write({ head, payload }, flushed) {
      if (ws.readyState !== ws.OPEN) return;
      const done = (error?: Error | null): void => {
        if (!error) flushed?.();
      };
      // Two fragments of one message: a payload is neither copied behind its header nor, at the other end, apart from it.
      if (payload.byteLength > 0) {
        ws.send(head, { ...binary, fin: false });
        ws.send(payload, { ...binary, fin: true }, done);
      } else {
        ws.send(head, binary, done);
      }
    },
    get bufferedBytes() {
      return ws.bufferedAmount;
    },
    get bytesRead() {
      return socket.bytesRead;
    },
    close() {
      ws.close(1000);
      setTimeout(() => ws.terminate(), CLOSE_TIMEOUT_MS).unref();
    },
    destroy: () => ws.terminate(),
    onFrame() {},
    onInvalid() {},
    onClose() {},
  };
  let reason: string | undefined;
  ws.binaryType = 'fragments';
  ws.on('message', (data, isBinary) => {
    let frame: DecodedFrame;
    try {
      if (!isBinary) throw new InvalidFrameError('it is text');
      frame = decodeFrame(data as Buffer[]);
    } catch (error) {
      if (!(error instanceof InvalidFrameError)) throw error;
      link.onInvalid(error);
      return;
    }
    link.onFrame(frame);
  });
  ws.on('ping', (data) => {
    if (ws.readyState === ws.OPEN && ws.bufferedAmount < WRITE_AHEAD_BYTES) ws.pong(data);
  });
  ws.on('error', (error: NodeJS.ErrnoException) => {
    reason = error.message;
    // What `ws` itself refuses (an oversized message, a bad opcode) is as much a breach as a bad header.
    if (error.code?.startsWith('WS_ERR')) link.onInvalid(new InvalidFrameError(error.message));
  });
  ws.on('close', (code) => link.onClose(reason ?? (code === 1006 ? 'it was cut' : `it was closed with code ${code}`)));
  return link;
}
