/**
 * One conversation with a peer: numbered messages both ways, each exactly once and in order, as far as the other side's
 * credit goes. The connections (links) under it may break: what was not acknowledged is sent again over the next one.
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

export interface ChannelOptions {
  /** How errors call the peer. */
  readonly peer: string;
  /** What the peer may have sent and we not have dealt with, and the most we hold for it. */
  readonly creditBytes: number;
  readonly silenceTimeoutMs: number;
  readonly onAttached?: () => void;
  /** The link broke before the end. Whoever is told attaches another, or calls `fail`. */
  readonly onDetached: (reason: PeerLostError | PeerTimeoutError) => void;
  /** Nothing more will be sent or received; because of `error`, or as both sides wished. */
  readonly onOver: (error?: Error) => void;
}

/** In a silence timeout, this many heartbeats are sent and the peer's bytes looked for. */
const BEATS = 3;
/** The peer is told after this part of its credit, so that it never stands still for want of it. */
const ACKS_PER_CREDIT = 4;
/** Or after this time: long against a small message, short against anything that waits for the ack. */
const ACK_DELAY_MS = 5;
/** How long `close` waits for the peer to close as well. */
const CLOSE_PATIENCE_MS = 5_000;

export class Channel implements MessageSink, MessageSource {
  readonly peer: string;
  private readonly outbox: Outbox;
  private readonly inbox: Inbox;
  private link: Link | undefined;
  private heartbeat: NodeJS.Timeout | undefined;
  private ackTimer: NodeJS.Timeout | undefined;
  private closing = false;
  private over = false;
  /** Resolves once nothing more will be sent or received, with what ended it, unless both sides wished it. */
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

  /** See `MessageSink`. Throws what ended the channel, and an `InvalidFrameError` for what no peer would accept. */
  send(header: MessageHeader, payload: Uint8Array = EMPTY): Promise<void> {
    return this.outbox.send(header, payload);
  }

  /** See `MessageSource`. Throws what ended the channel, after everything that had arrived. */
  receive(): Promise<Message | undefined> {
    return this.inbox.receive();
  }

  /** Resolves once the peer has dealt with everything sent. */
  flushed(): Promise<void> {
    return this.outbox.flushed();
  }

  /** Bytes sent and not acknowledged: what this channel holds in memory for its peer. */
  get heldBytes(): number {
    return this.outbox.heldBytes;
  }

  /** There is a connection under it. */
  get attached(): boolean {
    return this.link !== undefined;
  }

  /** For the hello of the next connection. */
  get received(): number {
    return this.inbox.received;
  }

  /** Ends the conversation once the peer has dealt with everything sent, and has closed as well. */
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

  /** Ends the conversation at once. The peer is told, unless it was the one who told us; senders and readers get `error`. */
  fail(error: Error): void {
    if (this.over) return;
    if (!(error instanceof RemoteError || error instanceof SessionLostError)) {
      const message = error.message.slice(0, MAX_MESSAGE_LENGTH);
      this.link?.write(encodeFrame({ kind: 'error', code: errorCode(error), message }));
    }
    this.finish(error);
  }

  /** Goes on over a new connection, whose peer has said hello. */
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

  /** What the peer does wrong ends this channel, and nothing else. */
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

  /** An ack for every message would cost more than small messages do. */
  private readonly scheduleAck = (): void => {
    if (this.inbox.unacknowledgedBytes >= this.options.creditBytes / ACKS_PER_CREDIT) this.sayConsumed();
    else this.ackTimer ??= setTimeout(() => this.sayConsumed(), ACK_DELAY_MS);
  };

  /** Acks that pile up before a peer that does not read would be memory without a bound; the next one says it all. */
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

  /** Beats are counted, not time: after this process itself was stopped, what the peer sent meanwhile is still to be read. */
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

/** What an `error` frame calls an error of ours; the peer cannot do more with it than tell. */
function errorCode(error: Error): string {
  if (error instanceof ProtocolError) return 'protocol';
  if (error instanceof FloodError) return 'flood';
  if (error instanceof ChecksumError) return 'checksum';
  if (error instanceof InterruptedError) return 'stopped';
  return 'failed';
}

/** What an `error` frame from the peer means here. */
export function remoteError(peer: string, { code, message }: Extract<Header, { kind: 'error' }>): Error {
  const isGone = code === 'unknown-session' || code === 'stopped';
  return isGone ? new SessionLostError(peer) : new RemoteError(peer, code, message);
}

/** What is wrong with a first frame that could not be read. */
export const helloError = (peer: string, { reason, protocol }: InvalidFrameError): Error =>
  protocol === undefined ? new ProtocolError(peer, reason) : new ProtocolVersionError(peer, protocol, PROTOCOL_VERSION);
