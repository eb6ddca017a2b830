/**
 * One conversation with a peer: numbered messages both ways, each exactly once and in order. The other side's credit limits
 * the bytes on the way. The connections (links) under it may break: messages that were not acknowledged are sent again over
 * the next one.
 */
import {
  ChecksumError,
  FloodError,
  InterruptedError,
  InvalidFrameError,
  PeerLostError,
  PeerTimeoutError,
  ProtocolError,
  ProtocolVersionError,
  RemoteError,
  SessionLostError,
} from '../errors.js';
import type { DecodedFrame } from './decode-frame.js';
import { encodeFrame } from './encode-frame.js';
import {
  EMPTY,
  type Header,
  type Hello,
  isNumbered,
  type Message,
  type MessageHeader,
  type MessageSink,
  type MessageSource,
} from './frame-header.js';
import { Inbox } from './inbox.js';
import { MAX_MESSAGE_LENGTH, PROTOCOL_VERSION, WRITE_AHEAD_BYTES } from './limits.js';
import type { Link } from './link.js';
import { Outbox } from './outbox.js';

/** Settings and callbacks of a channel. */
export interface ChannelOptions {
  /** Name of the peer in errors. */
  readonly peer: string;
  /** Most bytes that the peer may send before we have processed them, and most bytes that we hold for it. */
  readonly creditBytes: number;
  /** The peer is lost if no byte arrives for this long. */
  readonly silenceTimeoutMs: number;
  readonly onAttached?: () => void;
  /** The link broke before the end. The callback's owner attaches another link or calls `fail`. */
  readonly onDetached: (reason: PeerLostError | PeerTimeoutError) => void;
  /** Nothing more will be sent or received. `error` is the cause; without one, both sides closed. */
  readonly onOver: (error?: Error) => void;
}

/** Heartbeats in one silence timeout. At each, the peer's bytes are counted. */
const BEATS = 3;
/** An ack is sent after this fraction (1/4) of the credit, so that the peer never waits for credit. */
const ACKS_PER_CREDIT = 4;
/** An ack is sent after this time at the latest: long compared with a small message, short for a peer that waits for it. */
const ACK_DELAY_MS = 5;
/** How long `close` waits for the peer to close as well. */
const CLOSE_PATIENCE_MS = 5_000;

/** One conversation. `attach` gives it a connection; `close` or `fail` ends it. */
export class Channel implements MessageSink, MessageSource {
  readonly peer: string;
  private readonly outbox: Outbox;
  private readonly inbox: Inbox;
  private link: Link | undefined;
  private heartbeat: NodeJS.Timeout | undefined;
  private ackTimer: NodeJS.Timeout | undefined;
  private closing = false;
  private over = false;
  /** Resolves once nothing more will be sent or received, with the error that ended it; undefined if both sides closed. */
  readonly whenOver: Promise<Error | undefined>;
  private resolveOver: (error: Error | undefined) => void = () => {};

  constructor(private readonly options: ChannelOptions) {
    this.peer = options.peer;
    this.outbox = new Outbox(options.creditBytes, this.pump);
    this.inbox = new Inbox(options.peer, options.creditBytes, this.scheduleAck);
    this.whenOver = new Promise((resolve) => {
      this.resolveOver = resolve;
    });
  }

  /** See `MessageSink`. Throws the error that ended the channel, or an `InvalidFrameError` if no peer would accept the message. */
  send(header: MessageHeader, payload: Uint8Array = EMPTY): Promise<void> {
    return this.outbox.send(header, payload);
  }

  /** See `MessageSource`. Hands out every message that arrived, then throws the error that ended the channel. */
  receive(): Promise<Message | undefined> {
    return this.inbox.receive();
  }

  /** Resolves once the peer has processed every message. */
  flushed(): Promise<void> {
    return this.outbox.flushed();
  }

  /** Bytes that are held in memory because the peer has not acknowledged them. */
  get heldBytes(): number {
    return this.outbox.heldBytes;
  }

  /** Whether the channel has a connection. */
  get attached(): boolean {
    return this.link !== undefined;
  }

  /** Number of messages received. The hello of the next connection says it. */
  get received(): number {
    return this.inbox.received;
  }

  /** Waits until the peer has processed every message and has closed too, then ends the conversation. */
  async close(): Promise<void> {
    if (this.over) return;
    this.inbox.finishPrevious();
    this.sayConsumed();
    await this.outbox.flushed();
    this.closing = true;
    this.sayClosed();
    const patience = setTimeout(() => this.finish(), CLOSE_PATIENCE_MS);
    await this.whenOver;
    clearTimeout(patience);
  }

  /** Ends the conversation at once. Senders and readers get `error`. The peer gets it too, unless it sent the error. */
  fail(error: Error): void {
    if (this.over) return;
    if (!(error instanceof RemoteError || error instanceof SessionLostError)) {
      const message = error.message.slice(0, MAX_MESSAGE_LENGTH);
      this.link?.write(encodeFrame({ kind: 'error', code: errorCode(error), message }));
    }
    this.finish(error);
  }

  /** Continues over a new connection. The peer's hello has already been read. */
  attach(link: Link, { received, credit }: Hello): void {
    this.release()?.destroy();
    if (this.over) {
      link.close();
      return;
    }
    this.link = link;
    link.onFrame = (frame) => this.guard(() => this.take(frame));
    link.onInvalid = (error) => this.fail(new ProtocolError(this.peer, error.reason));
    link.onClose = (reason) => this.detach(new PeerLostError(this.peer, reason));
    this.options.onAttached?.();
    this.startHeartbeat(link);
    this.guard(() => this.outbox.resume(received, credit));
    this.sayConsumed(); // the last ack may have been lost with the last connection
    if (this.closing) this.sayClosed();
  }

  private detach(reason: PeerLostError | PeerTimeoutError): void {
    this.release()?.destroy();
    if (!this.over) this.options.onDetached(reason);
  }

  private release(): Link | undefined {
    const { link } = this;
    clearInterval(this.heartbeat);
    this.link = undefined;
    if (link) Object.assign(link, { onFrame() {}, onInvalid() {}, onClose() {} });
    return link;
  }

  private finish(error?: Error): void {
    if (this.over) return;
    this.over = true;
    clearTimeout(this.ackTimer);
    this.release()?.close();
    const reason = error ?? new PeerLostError(this.peer, 'the conversation was closed');
    this.outbox.fail(reason);
    this.inbox.fail(reason);
    this.resolveOver(error);
    this.options.onOver(error);
  }

  private take(frame: DecodedFrame): void {
    const { header } = frame;
    if (isNumbered(header)) {
      this.inbox.put(frame, header);
    } else if (header.kind === 'ack') {
      this.outbox.acknowledge(header.consumed);
    } else if (header.kind === 'error') {
      this.finish(remoteError(this.peer, header));
    } else if (header.kind === 'hello') {
      throw new InvalidFrameError('a second hello on one connection');
    } else if (!this.inbox.closed) {
      this.inbox.close(header.sent);
      this.outbox.abandon(new PeerLostError(this.peer, 'it closed the conversation'));
      if (this.closing) this.finish();
    }
  }

  /** An error of the peer ends this channel only, not the process. */
  private guard(act: () => void): void {
    try {
      act();
    } catch (error) {
      this.fail(error instanceof InvalidFrameError ? new ProtocolError(this.peer, error.reason) : (error as Error));
    }
  }

  private readonly pump = (): void => {
    for (let { link } = this; link && link.bufferedBytes < WRITE_AHEAD_BYTES; { link } = this) {
      const frame = this.outbox.take();
      if (!frame) return;
      link.write(frame, this.pump);
    }
  };

  /** Messages are acknowledged together: one ack each would cost more than small messages do. */
  private readonly scheduleAck = (): void => {
    if (this.inbox.unacknowledgedBytes >= this.options.creditBytes / ACKS_PER_CREDIT) this.sayConsumed();
    else this.ackTimer ??= setTimeout(() => this.sayConsumed(), ACK_DELAY_MS);
  };

  /** Sends an ack. It is left out while the socket's buffer is full: acks for a peer that does not read would fill the memory. */
  private sayConsumed(): void {
    clearTimeout(this.ackTimer);
    this.ackTimer = undefined;
    if (!this.link || this.link.bufferedBytes >= 2 * WRITE_AHEAD_BYTES) return;
    this.link.write(encodeFrame({ kind: 'ack', consumed: this.inbox.acknowledge() }));
  }

  private sayClosed(): void {
    this.link?.write(encodeFrame({ kind: 'close', sent: this.outbox.sent }));
    if (this.inbox.closed) this.finish();
  }

  /** Counts beats, not time: after this process was suspended, the peer's bytes still wait to be read. */
  private startHeartbeat(link: Link): void {
    const { silenceTimeoutMs } = this.options;
    let seen = link.bytesRead;
    let silent = 0;
    this.heartbeat = setInterval(() => {
      silent = link.bytesRead === seen ? silent + 1 : 0;
      seen = link.bytesRead;
      if (silent >= BEATS) return this.detach(new PeerTimeoutError(this.peer, silenceTimeoutMs / 1000));
      this.sayConsumed();
    }, silenceTimeoutMs / BEATS);
  }
}

/** The code of one of our errors in an `error` frame. The peer only reports it. */
function errorCode(error: Error): string {
  if (error instanceof ProtocolError) return 'protocol';
  if (error instanceof FloodError) return 'flood';
  if (error instanceof ChecksumError) return 'checksum';
  if (error instanceof InterruptedError) return 'stopped';
  return 'failed';
}

/** The error for an `error` frame from the peer. */
export function remoteError(peer: string, { code, message }: Extract<Header, { kind: 'error' }>): Error {
  const isGone = code === 'unknown-session' || code === 'stopped';
  return isGone ? new SessionLostError(peer) : new RemoteError(peer, code, message);
}

/** The error for a first frame that cannot be read. */
export const helloError = (peer: string, { reason, protocol }: InvalidFrameError): Error =>
  protocol === undefined ? new ProtocolError(peer, reason) : new ProtocolVersionError(peer, protocol, PROTOCOL_VERSION);
