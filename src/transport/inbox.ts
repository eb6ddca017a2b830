import { FloodError, InvalidFrameError } from '../errors.js';
import type { DecodedFrame } from './decode-frame.js';
import type { Message, NumberedHeader } from './frame-header.js';
import { FRAME_OVERHEAD_BYTES } from './limits.js';

interface Queued {
  readonly message: Message;
  readonly cost: number;
}

/**
 * The receiving half of a channel. It checks numbers and the credit and hands messages out one at a time. A message counts
 * against the credit until the next one is requested.
 */
export class Inbox {
  private readonly queue = new Map<number, Queued>();
  private bytes = 0;
  private unacknowledged = 0;
  private next = 0;
  private finished = 0;
  /** Bytes that the last message handed out still counts. The message itself is not kept. */
  private handedOut: number | undefined;
  private end: number | undefined;
  private failure: Error | undefined;
  private wake: (() => void) | undefined;

  /**
   * @param credit most bytes that the peer may send before we have processed them
   * @param onConsumed called when a message can be acknowledged
   */
  constructor(
    private readonly peer: string,
    private readonly credit: number,
    private readonly onConsumed: () => void,
  ) {}

  /** Messages received so far. */
  get received(): number {
    return this.next;
  }

  /** Bytes processed since the last ack. */
  get unacknowledgedBytes(): number {
    return this.unacknowledged;
  }

  /** Number of messages processed so far. The caller sends it as an ack. */
  acknowledge(): number {
    this.unacknowledged = 0;
    return this.finished;
  }

  /** Queues a message. Throws an `InvalidFrameError` for a wrong number and a `FloodError` above the credit. */
  put({ payload, bytes }: DecodedFrame, header: NumberedHeader): void {
    if (this.end !== undefined) throw new InvalidFrameError('it comes after the peer had closed');
    if (header.seq !== this.next) throw new InvalidFrameError(`it is number ${header.seq}, expected is ${this.next}`);
    const cost = bytes + FRAME_OVERHEAD_BYTES;
    if (this.bytes + cost > this.credit) throw new FloodError(this.peer, this.bytes + cost, this.credit);
    this.bytes += cost;
    this.queue.set(this.next++, { message: { header, payload }, cost });
    this.wakeReader();
  }

  /** The peer has closed after `sent` messages. Throws an `InvalidFrameError` if another number has arrived. */
  close(sent: number): void {
    if (sent !== this.next)
      throw new InvalidFrameError(`the peer closes after ${sent} messages, ${this.next} have arrived`);
    this.end = sent;
    this.wakeReader();
  }

  get closed(): boolean {
    return this.end !== undefined;
  }

  async receive(): Promise<Message | undefined> {
    this.finishPrevious();
    for (;;) {
      const queued = this.queue.get(this.finished);
      if (queued) {
        this.handedOut = queued.cost;
        this.queue.delete(this.finished);
        return queued.message;
      }
      if (this.failure) throw this.failure;
      if (this.closed) return undefined;
      await new Promise<void>((resolve) => {
        this.wake = resolve;
      });
    }
  }

  /** Messages that have arrived are still handed out. Then `receive` throws this error. */
  fail(error: Error): void {
    this.failure ??= error;
    this.wakeReader();
  }

  /** The last message handed out was processed. */
  finishPrevious(): void {
    if (this.handedOut === undefined) return;
    this.bytes -= this.handedOut;
    this.unacknowledged += this.handedOut;
    this.handedOut = undefined;
    this.finished++;
    this.onConsumed();
  }

  private wakeReader(): void {
    this.wake?.();
    this.wake = undefined;
  }
}
