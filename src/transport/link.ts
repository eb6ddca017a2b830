/** Frames on one WebSocket. A channel outlives its links. */
import type { Socket } from 'node:net';
import type { ClientOptions, ServerOptions, WebSocket } from 'ws';
import { InvalidFrameError } from '../errors.js';
import { type DecodedFrame, decodeFrame } from './decode-frame.js';
import type { EncodedFrame } from './encode-frame.js';
import { MAX_FRAME_BYTES, WRITE_AHEAD_BYTES } from './limits.js';
import { createMessageReader } from './message-reader.js';

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
  /** The peer sent what is not a frame. Nothing more is read. */
  onInvalid: (error: InvalidFrameError) => void;
  /** Called once. */
  onClose: (reason: string) => void;
}

/** For both ends. Compression would cost more than it saves: weights do not compress. */
export const SOCKET_OPTIONS: Pick<ClientOptions & ServerOptions, 'perMessageDeflate' | 'maxPayload' | 'autoPong'> = {
  perMessageDeflate: false,
  maxPayload: MAX_FRAME_BYTES,
  autoPong: false, // answered below, unless the answers pile up
};

/** A peer that does not close in return within this time is cut off. */
const CLOSE_TIMEOUT_MS = 2_000;

/**
 * @param socket the connection underneath `ws`, from which nothing was read since it was upgraded
 * @param masked what comes in is: the peer is the one that connected
 */
export function createLink(ws: WebSocket, socket: Socket, masked: boolean): Link {
  const binary = { binary: true, compress: false };
  let reading = true;
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
  const refuse = (error: InvalidFrameError): void => {
    reading = false;
    link.onInvalid(error);
  };
  let reason: string | undefined;
  ws.on('ping', (data) => {
    if (ws.readyState === ws.OPEN && ws.bufferedAmount < WRITE_AHEAD_BYTES) ws.pong(data);
  });
  ws.on('error', (error: NodeJS.ErrnoException) => {
    reason = error.message;
    if (error.code?.startsWith('WS_ERR')) refuse(new InvalidFrameError(error.message));
  });
  ws.on('close', (code) => link.onClose(reason ?? (code === 1006 ? 'it was cut' : `it was closed with code ${code}`)));

  // `ws` goes on answering control frames; data it does not get to see.
  const toWs = socket.listeners('data') as Array<(chunk: Buffer) => void>;
  socket.removeAllListeners('data');
  const read = createMessageReader({
    masked,
    onMessage: (fragments) => link.onFrame(decodeFrame(fragments)),
    onControl: (frame) => {
      for (const listener of toWs) listener.call(socket, frame);
    },
  });
  socket.on('data', (chunk: Buffer) => {
    if (!reading) return;
    try {
      read(chunk);
    } catch (error) {
      if (!(error instanceof InvalidFrameError)) throw error;
      refuse(error);
    }
  });
  return link;
}
