import { InvalidFrameError } from '../errors.js';
import { type EncodedFrame, encodeFrame, frameBytes } from './encode-frame.js';
import type { MessageHeader, NumberedHeader } from './frame-header.js';
import { FRAME_OVERHEAD_BYTES } from './limits.js';

interface Waiting {
  readonly header: MessageHeader;
  readonly payload: Uint8Array;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

/**
 * The sending half of a channel. It numbers messages, sends as many as the credit allows, and keeps each until the peer has
 * processed it. After a broken connection it sends the kept ones again.
 */
export class Outbox {
  private readonly held = new Map<number, EncodedFrame>();
  private readonly waiting: Waiting[] = [];
  private readonly flushing: Array<Pick<Waiting, 'resolve' | 'reject'>> = [];
  private credit = 0;
  private bytes = 0;
  private acknowledged = 0;
  private written = 0;
  private next = 0;
  private failure: Error | undefined;

  /**
   * @param limit most bytes held, even if the peer's credit is larger
   * @param onReady called when a frame can be written
   */
  constructor(
    private readonly limit: number,
    private readonly onReady: () => void,
  ) {}

  /** Bytes that count against the credit: frames that were sent or can be sent, and are not acknowledged. */
  get heldBytes(): number {
    return this.bytes;
  }

  /** Messages numbered so far. */
  get sent(): number {
    return this.next;
  }

  /** Resolves once the credit lets the message through. Rejects with the failure, or an `InvalidFrameError`. */
  send(header: MessageHeader, payload: Uint8Array): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.failure) return reject(this.failure);
      this.waiting.push({ header, payload, resolve, reject });
      this.admit();
    });
  }

  /** Resolves once the peer has processed every message. */
  flushed(): Promise<void> {
    return new Promise((resolve, reject) => {
      if (this.failure && this.acknowledged < this.next) return reject(this.failure);
      this.flushing.push({ resolve, reject });
      this.resolveFlushed();
    });
  }

  /** The next frame to write to this connection; undefined if there is none. */
  take(): EncodedFrame | undefined {
    const frame = this.held.get(this.written);
    if (frame) this.written++;
    return frame;
  }

  /** The peer has processed `consumed` messages. Throws an `InvalidFrameError` if that number is impossible. */
  acknowledge(consumed: number): void {
    if (this.failure) return;
    if (consumed < this.acknowledged || consumed > this.written)
      throw new InvalidFrameError(
        `${consumed} frames are acknowledged, after ${this.acknowledged}, of ${this.written} sent`,
      );
    for (; this.acknowledged < consumed; this.acknowledged++) {
      this.bytes -= cost(this.held.get(this.acknowledged) as EncodedFrame);
      this.held.delete(this.acknowledged);
    }
    this.admit();
    this.resolveFlushed();
  }

  /** A new connection. The peer's hello says how many messages it has received, and its credit. */
  resume(received: number, credit: number): void {
    if (received < this.acknowledged || received > this.next)
      throw new InvalidFrameError(`${received} frames are said to be received, of ${this.next} sent`);
    this.written = received;
    this.credit = Math.min(credit, this.limit);
    this.admit();
  }

  /** Rejects everything that waits, and drops the kept frames. */
  fail(error: Error): void {
    this.failure ??= error;
    for (const { reject } of [...this.waiting.splice(0), ...this.flushing.splice(0)]) reject(this.failure);
    this.held.clear();
  }

  /** The peer has closed and wants no more frames. Later messages are refused with `error`. */
  abandon(error: Error): void {
    this.acknowledged = this.next;
    this.resolveFlushed();
    this.fail(error);
  }

  private admit(): void {
    for (let first = this.waiting[0]; first && !this.failure; first = this.waiting[0]) {
      let frame: EncodedFrame;
      try {
        frame = encodeFrame({ ...first.header, seq: this.next } as NumberedHeader, first.payload);
      } catch (error) {
        this.waiting.shift();
        first.reject(error as Error);
        continue;
      }
      if (this.bytes + cost(frame) > this.credit) break;
      this.waiting.shift();
      this.held.set(this.next++, frame);
      this.bytes += cost(frame);
      first.resolve();
    }
    if (this.written < this.next) this.onReady();
  }

  private resolveFlushed(): void {
    if (this.waiting.length > 0 || this.acknowledged < this.next) return;
    for (const { resolve } of this.flushing.splice(0)) resolve();
  }
}

/** Bytes that a frame counts against a credit. */
const cost = (frame: EncodedFrame): number => frameBytes(frame) + FRAME_OVERHEAD_BYTES;
