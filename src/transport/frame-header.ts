/** Schemas of frame headers. Every header from a peer is checked against them before it is used. */
import { z } from 'zod';
import { InvalidFrameError } from '../errors.js';
import { CHECKSUM_BYTES } from './checksum.js';
import { MAX_DIMENSIONS, MAX_MESSAGE_LENGTH, MAX_NAME_LENGTH, MIN_CREDIT_BYTES, PROTOCOL_VERSION } from './limits.js';

/** Zod's `int` accepts only safe integers. */
const count = z.int().nonnegative();
const name = z.string().min(1).max(MAX_NAME_LENGTH);

/** Control frames belong to one connection and take effect at once. They have no number and do not count against a credit. */
const control = [
  z.strictObject({
    kind: z.literal('hello'),
    protocol: z.literal(PROTOCOL_VERSION),
    /** The service that the listening side offers and the connecting side requests. */
    service: name,
    /** 128 random bits, chosen by the connecting side. */
    session: z.string().regex(/^[0-9a-f]{32}$/),
    /** From the connecting side: the session must already exist. From the listening side: it did. */
    resume: z.boolean(),
    /** Numbered frames received in this session so far. The other side continues with this number. */
    received: count,
    /** Most bytes that may be sent before they are acknowledged. */
    credit: z.int().min(MIN_CREDIT_BYTES),
  }),
  /** The receiver has processed `consumed` numbered frames. Repeated as a heartbeat. */
  z.strictObject({ kind: z.literal('ack'), consumed: count }),
  /** This error ended the session. */
  z.strictObject({
    kind: z.literal('error'),
    code: name,
    message: z.string().max(MAX_MESSAGE_LENGTH),
    /** For the code `protocol-version`, the version wanted; for `wrong-service`, the service offered. */
    wanted: z.union([count, name]).optional(),
  }),
  /** No frame follows the `sent` numbered frames. */
  z.strictObject({ kind: z.literal('close'), sent: count }),
] as const;

/** Numbered frames arrive exactly once and in order, however often the connection breaks. */
const numbered = [
  z.strictObject({
    kind: z.literal('request'),
    seq: count,
    method: name,
    params: z.unknown(),
    /** Tensors follow the request, then an `end`, or a `failure` if the asking side gives up. */
    uploads: z.literal(true).optional(),
  }),
  z.strictObject({
    kind: z.literal('tensor'),
    seq: count,
    /** Number of the tensor. It starts from 0 again after each `end` or `failure`. */
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
    /** Checksum of all the tensor's bytes. Only the frame that completes the tensor has it. */
    checksum: z
      .instanceof(Uint8Array)
      .refine(({ byteLength }) => byteLength === CHECKSUM_BYTES)
      .optional(),
  }),
  /** Progress, in a form that the service defines. */
  z.strictObject({ kind: z.literal('event'), seq: count, value: z.unknown() }),
  /** A request or an answer is complete. */
  z.strictObject({ kind: z.literal('end'), seq: count, value: z.unknown() }),
  /** Sent in place of `end`: the request failed, and the session continues. */
  z.strictObject({ kind: z.literal('failure'), seq: count, name, message: z.string().max(MAX_MESSAGE_LENGTH) }),
] as const;

const headerSchema = z.discriminatedUnion('kind', [...control, ...numbered]);

/** The header of any frame. */
export type Header = z.infer<typeof headerSchema>;
/** The header of a numbered frame. */
export type NumberedHeader = z.infer<(typeof numbered)[number]>;
type Unnumbered<H> = H extends unknown ? Omit<H, 'seq'> : never;
/** A numbered header before it has its number. */
export type MessageHeader = Unnumbered<NumberedHeader>;
/** The header that starts a connection. */
export type Hello = Extract<Header, { kind: 'hello' }>;

/** A decoded value as a header. Throws an `InvalidFrameError` that names the wrong field. */
export function checkHeader(value: unknown): Header {
  const { success, data, error } = headerSchema.safeParse(value);
  if (success) return data;
  const { kind, protocol } = (value ?? {}) as Record<string, unknown>;
  if (kind === 'hello' && typeof protocol === 'number' && protocol !== PROTOCOL_VERSION)
    throw new InvalidFrameError(`it speaks version ${protocol} of the protocol`, protocol);
  const [issue] = error.issues;
  throw new InvalidFrameError(`its header is wrong at "${issue?.path.join('.')}": ${issue?.message}`);
}

/** Only `data` frames have a payload. */
export const hasPayload = (header: { kind: string }): boolean => header.kind === 'data';

/** Numbered frames have a `seq`. */
export const isNumbered = (header: Header): header is NumberedHeader => 'seq' in header;

/** The payload of frames without one. */
export const EMPTY = new Uint8Array(0);

/** A received numbered frame. */
export interface Message {
  readonly header: NumberedHeader;
  readonly payload: Uint8Array;
}

/** The sending end of a conversation: a channel or a byte stream. */
export interface MessageSink {
  /**
   * Resolves once the peer's credit, or the pipe, lets the message through. The payload belongs to the sink from then on:
   * its bytes must not change.
   */
  send(header: MessageHeader, payload?: Uint8Array): Promise<void>;
}

/** The receiving end of a conversation. It has one reader at a time. */
export interface MessageSource {
  readonly peer: string;
  /** The next message; undefined after the peer has closed. The call also says that the previous message was processed. */
  receive(): Promise<Message | undefined>;
}
