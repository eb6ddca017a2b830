/** Frames on one WebSocket. A channel uses one link after another. */
import type { Socket } from 'node:net';
import type { ClientOptions, ServerOptions, WebSocket } from 'ws';
import { InvalidFrameError } from '../errors.js';
import { type DecodedFrame, decodeFrame } from './decode-frame.js';
import type { EncodedFrame } from './encode-frame.js';
import { MAX_FRAGMENTS, MAX_FRAME_BYTES, WRITE_AHEAD_BYTES } from './limits.js';

/** One connection. */
export interface Link {
  /** Sends a frame. `flushed` is called once the system has taken it; if the connection breaks first, it is never called. */
  write(frame: EncodedFrame, flushed?: () => void): void;
  /** Bytes given to the socket that the system has not taken yet. */
  readonly bufferedBytes: number;
  /** Bytes that have arrived, also those of an incomplete frame: on a slow line one frame may take minutes. */
  readonly bytesRead: number;
  /** Closes with WebSocket's closing handshake. */
  close(): void;
  /** Closes at once, without the handshake. */
  destroy(): void;
  onFrame: (frame: DecodedFrame) => void;
  /** Called when the peer sends bytes that are not a frame. */
  onInvalid: (error: InvalidFrameError) => void;
  /** Called once. */
  onClose: (reason: string) => void;
}

/** WebSocket options of both ends. There is no compression: weights do not compress. (`maxFragments` is missing in the types.) */
export const SOCKET_OPTIONS: Pick<ClientOptions & ServerOptions, 'perMessageDeflate' | 'maxPayload' | 'autoPong'> & {
  readonly maxFragments: number;
} = {
  perMessageDeflate: false,
  maxPayload: MAX_FRAME_BYTES,
  maxFragments: MAX_FRAGMENTS,
  autoPong: false, // pings are answered below, unless the answers pile up
};

/** A peer that does not complete the closing handshake in this time is disconnected. */
const CLOSE_TIMEOUT_MS = 2_000;

/**
 * Makes glibc keep freed memory; called once in a process, before it receives. glibc returns every freed buffer of a frame's
 * size to the system and gets the next one page by page, which takes longer than the checksum. Once a buffer of nearly 32 MiB
 * was freed, it keeps up to twice as much (mallopt(3), M_MMAP_THRESHOLD). This buffer is never written, so it takes no memory,
 * and V8 soon frees it.
 */
function keepFreedMemory(): void {
  if (!kept) new Uint8Array(31 * 2 ** 20);
  kept = true;
}
let kept = false;

/**
 * A link on an open WebSocket.
 * @param socket the connection under `ws`
 */
export function createLink(ws: WebSocket, socket: Socket): Link {
  keepFreedMemory();
  const binary = { binary: true, compress: false };
  const link: Link = {
    write({ head, payload }, flushed) {
      if (ws.readyState !== ws.OPEN) return;
      const done = (error?: Error | null): void => {
        if (!error) flushed?.();
      };
      // One message in two fragments: neither end has to copy the payload.
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
    // `ws` refuses oversized messages and bad opcodes itself. They break the protocol, as a bad header does.
    if (error.code?.startsWith('WS_ERR')) link.onInvalid(new InvalidFrameError(error.message));
  });
  ws.on('close', (code) => link.onClose(reason ?? (code === 1006 ? 'it was cut' : `it was closed with code ${code}`)));
  return link;
}
