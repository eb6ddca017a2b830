/** What a frame's header may say. Everything a peer sends is checked against these before anything looks at it. */
import { z } from 'zod';
import { InvalidFrameError } from '../errors.js';
import { CHECKSUM_BYTES } from './checksum.js';
import { MAX_DIMENSIONS, MAX_MESSAGE_LENGTH, MAX_NAME_LENGTH, MIN_CREDIT_BYTES, PROTOCOL_VERSION } from './limits.js';

/** Zod's `int` accepts safe integers only. */
const count = z.int().nonnegative();
const name = z.string().min(1).max(MAX_NAME_LENGTH);

/** Control frames: of one connection, acted upon at once, neither numbered nor counted against a credit. */
const control = [
  z.strictObject({
    kind: z.literal('hello'),
    protocol: z.literal(PROTOCOL_VERSION),
    /** What the side that listens offers, and the side that connects looks for. */
    service: name,
    /** 128 random bits, chosen by the side that connects. */
    session: z.string().regex(/^[0-9a-f]{32}$/),
    /** The side that connects: the session must exist already. The side that listens: it did. */
    resume: z.boolean(),
    /** Numbered frames received in this session so far: sending goes on from that number. */
    received: count,
    /** Bytes that may be sent and not yet be acknowledged. */
    credit: z.int().min(MIN_CREDIT_BYTES),
  }),
  /** `consumed` numbered frames were taken by whoever the channel is for. Repeated as a heartbeat. */
  z.strictObject({ kind: z.literal('ack'), consumed: count }),
  /** The session is over because of this. */
  z.strictObject({
    kind: z.literal('error'),
    code: name,
    message: z.string().max(MAX_MESSAGE_LENGTH),
    /** `protocol-version`: the version wanted. `wrong-service`: the service offered. */
    wanted: z.union([count, name]).optional(),
  }),
  /** Nothing follows the `sent` numbered frames. */
  z.strictObject({ kind: z.literal('close'), sent: count }),
] as const;

/** Numbered frames: each exactly once and in order, however often the connection is cut. */
const numbered = [
  z.strictObject({
    kind: z.literal('request'),
    seq: count,
    method: name,
    params: z.unknown(),
    /** Tensors come with it, then an `end`, or a `failure` where the side that asks gives up. */
    uploads: z.literal(true).optional(),
  }),
  z.strictObject({
    kind: z.literal('tensor'),
    seq: count,
    /** Counts from 0, anew after each `end` or `failure`. */
    tensor: count,
    name,
    dtype: name,
    shape: z.array(count).max(MAX_DIMENSIONS),
    bytes: count,
  }),
  z.strictObject({
    /** The payload continues the tensor's bytes. */
    kind: z.literal('data'),
    seq: count,
    tensor: count,
    /** Of all the tensor's bytes: in the frame that completes it, and only there. */
    checksum: z
      .instanceof(Uint8Array)
      .refine(({ byteLength }) => byteLength === CHECKSUM_BYTES)
      .optional(),
  }),
  /** Progress, whatever the service defines. */
  z.strictObject({ kind: z.literal('event'), seq: count, value: z.unknown() }),
  /** A request, or the answer to one, is complete. */
  z.strictObject({ kind: z.literal('end'), seq: count, value: z.unknown() }),
  /** In place of `end`: the request failed; the session goes on. */
  z.strictObject({ kind: z.literal('failure'), seq: count, name, message: z.string().max(MAX_MESSAGE_LENGTH) }),
] as const;

const headerSchema = z.discriminatedUnion('kind', [...control, ...numbered]);

export type Header = z.infer<typeof headerSchema>;
export type NumberedHeader = z.infer<(typeof numbered)[number]>;
type Unnumbered<H> = H extends unknown ? Omit<H, 'seq'> : never;
/** A numbered header before it has its number. */
export type MessageHeader = Unnumbered<NumberedHeader>;
export type Hello = Extract<Header, { kind: 'hello' }>;

/** Throws an `InvalidFrameError` that names the field. */
export function checkHeader(value: unknown): Header {
  const { success, data, error } = headerSchema.safeParse(value);
  if (success) return data;
  const { kind, protocol } = (value ?? {}) as Record<string, unknown>;
  if (kind === 'hello' && typeof protocol === 'number' && protocol !== PROTOCOL_VERSION)
    throw new InvalidFrameError(`it speaks version ${protocol} of the protocol`, protocol);
  const [issue] = error.issues;
  throw new InvalidFrameError(`its header is wrong at "${issue?.path.join('.')}": ${issue?.message}`);
}

/** The only kind of frame that has a payload. */
export const hasPayload = (header: { kind: string }): boolean => header.kind === 'data';

export const isNumbered = (header: Header): header is NumberedHeader => 'seq' in header;

export const EMPTY = new Uint8Array(0);

/** A numbered frame as it is handed on. */
export interface Message {
  readonly header: NumberedHeader;
  readonly payload: Uint8Array;
}

/** Where messages can be sent: a channel, or a byte stream. */
export interface MessageSink {
  /**
   * Resolves once the message may be on its way: as far as the peer's credit, or the pipe, allows. The payload's bytes are
   * the sink's from then on and must not change.
   */
  send(header: MessageHeader, payload?: Uint8Array): Promise<void>;
}

/** Where messages come from. One reader at a time. */
export interface MessageSource {
  readonly peer: string;
  /** The next message; undefined after the peer has closed. Asking says that the one before was dealt with. */
  receive(): Promise<Message | undefined>;
}
