/**
 * The receiving half of RFC 6455, for data. `ws` collects the pieces that a socket delivers until a message is whole; at
 * megabytes a message most of its time goes to the garbage collector. Here each piece is copied to its place as it comes
 * (bench/transport.ts has the difference). Control frames are handed on as they are, for `ws` to answer.
 */
import { InvalidFrameError } from '../errors.js';
import { EMPTY } from './header.js';
import { MAX_FRAGMENTS, MAX_FRAME_BYTES } from './limits.js';

export interface MessageReaderOptions {
  /** RFC 6455, section 5.1: clients mask, servers do not. */
  readonly masked: boolean;
  /** A message, in the fragments it came in, each in memory of its own. */
  readonly onMessage: (fragments: readonly Uint8Array[]) => void;
  /** A whole control frame: close, ping or pong. */
  readonly onControl: (frame: Buffer) => void;
}

const CONTINUATION = 0;
const BINARY = 2;
const FIRST_CONTROL = 8;
/** Two bytes, a length of at most eight, a mask of four. */
const MAX_HEAD_BYTES = 14;
const MAX_CONTROL_BYTES = 125;

interface WireFrame {
  readonly opcode: number;
  readonly final: boolean;
  readonly mask: Uint8Array;
  /** The frame as it came, up to its payload. */
  readonly head: Buffer;
  readonly payload: Buffer;
}

/** A function that takes what the socket delivers. It throws an `InvalidFrameError`, and must not be called again then. */
export function createMessageReader({ masked, onMessage, onControl }: MessageReaderOptions): (chunk: Buffer) => void {
  const head = Buffer.alloc(MAX_HEAD_BYTES);
  let headBytes = 0;
  let frame: WireFrame | undefined;
  let filled = 0;
  let fragments: Uint8Array[] = [];
  let messageBytes = 0;

  const start = (): WireFrame | undefined => {
    const needed = headLength(head, headBytes);
    if (headBytes < needed) return undefined;
    const opcode = (head[0] as number) & 0x0f;
    const final = ((head[0] as number) & 0x80) !== 0;
    const length = payloadLength(head);
    if (((head[0] as number) & 0x70) !== 0) throw new InvalidFrameError('it has a reserved bit of WebSocket set');
    if ((((head[1] as number) & 0x80) !== 0) !== masked)
      throw new InvalidFrameError(masked ? 'it is not masked' : 'it is masked');
    if (opcode >= FIRST_CONTROL) {
      if (!final || length > MAX_CONTROL_BYTES) throw new InvalidFrameError('a WebSocket control frame is too long');
    } else {
      if (opcode !== (fragments.length > 0 ? CONTINUATION : BINARY))
        throw new InvalidFrameError(`it has the WebSocket opcode ${opcode}, where none such belongs`);
      if (fragments.length >= MAX_FRAGMENTS) throw new InvalidFrameError(`it has more than ${MAX_FRAGMENTS} fragments`);
      messageBytes += length;
      if (messageBytes > MAX_FRAME_BYTES)
        throw new InvalidFrameError(`it has ${messageBytes} bytes or more, at most ${MAX_FRAME_BYTES} are allowed`);
    }
    const mask = masked ? Uint8Array.from(head.subarray(needed - 4, needed)) : EMPTY;
    // Not from Node's pool: a payload lives as long as its reader likes, and would keep its neighbours.
    const payload = Buffer.allocUnsafeSlow(length);
    return { opcode, final, mask, head: Buffer.from(head.subarray(0, needed)), payload };
  };

  const finish = ({ opcode, final, mask, head: frameHead, payload }: WireFrame): void => {
    if (opcode >= FIRST_CONTROL) {
      onControl(Buffer.concat([frameHead, payload]));
      return;
    }
    unmask(payload, mask);
    fragments.push(payload);
    if (!final) return;
    const message = fragments;
    fragments = [];
    messageBytes = 0;
    onMessage(message);
  };

  return (chunk) => {
    for (let at = 0; at < chunk.byteLength; ) {
      if (!frame) {
        head[headBytes++] = chunk[at++] as number;
        frame = start();
        if (!frame) continue;
        headBytes = 0;
        filled = 0;
      }
      const { payload } = frame;
      const taken = Math.min(chunk.byteLength - at, payload.byteLength - filled);
      chunk.copy(payload, filled, at, at + taken);
      filled += taken;
      at += taken;
      if (filled === payload.byteLength) {
        const whole = frame;
        frame = undefined;
        finish(whole);
      }
    }
  };
}

/** Bytes before the payload, as far as can be told from the first `known` of them. */
function headLength(head: Buffer, known: number): number {
  if (known < 2) return 2;
  const length = (head[1] as number) & 0x7f;
  const mask = (head[1] as number) & 0x80 ? 4 : 0;
  return 2 + mask + (length === 126 ? 2 : length === 127 ? 8 : 0);
}

function payloadLength(head: Buffer): number {
  const length = (head[1] as number) & 0x7f;
  if (length === 126) return head.readUInt16BE(2);
  return length === 127 ? Number(head.readBigUInt64BE(2)) : length;
}

/** Four bytes at a time; `payload` starts at the first byte of its memory. */
function unmask(payload: Buffer, mask: Uint8Array): void {
  if (mask.every((byte) => byte === 0)) return;
  const whole = payload.byteLength >> 2;
  const words = new Uint32Array(payload.buffer, 0, whole);
  const word = new Uint32Array(mask.buffer, 0, 1)[0] as number;
  for (let i = 0; i < whole; i++) words[i] = (words[i] as number) ^ word;
  for (let i = whole * 4; i < payload.byteLength; i++) payload[i] = (payload[i] as number) ^ (mask[i & 3] as number);
}
