/**
 * Requests over a channel. They are answered one after the other, in the order in which they came, so an answer needs no
 * number. The asking side may send a request before the last answer has come.
 *
 *     request (→ tensors, then end or failure) → tensors and events, then end or failure
 */
import { ProtocolError, RemoteError } from '../errors.js';
import type { Channel } from './channel.js';
import type { MessageSink, MessageSource } from './frame-header.js';
import { MAX_MESSAGE_LENGTH } from './limits.js';
import { receiveTensors } from './receive-tensors.js';
import { sendTensors } from './send-tensors.js';
import type { TensorPiece } from './tensor-piece.js';

/** The tensors that come with a request, and functions to send the answer's parts. */
export interface Reply {
  /** Tensors that came with the request, possibly none. The handler need not read them all. */
  readonly uploads: AsyncIterableIterator<TensorPiece>;
  /** Sends tensors as part of the answer. */
  tensors(pieces: AsyncIterable<TensorPiece> | Iterable<TensorPiece>): Promise<void>;
  /** Sends an intermediate message, such as progress. */
  event(value: unknown): Promise<void>;
}

/** Answers one request. Its value ends the answer. If it throws, the asking side gets a `RemoteError` and the conversation continues. */
export type Handler = (params: unknown, reply: Reply) => Promise<unknown>;

/**
 * Answers requests until the peer closes. Throws a `ProtocolError` for an unknown method, and the error that ends the source.
 * @param sink undefined on a one-way stream: nobody reads answers, so a failing handler ends the conversation
 */
export async function answerRequests(
  source: MessageSource,
  sink: MessageSink | undefined,
  handlers: Readonly<Record<string, Handler>>,
): Promise<void> {
  const { peer } = source;
  for (let message = await source.receive(); message; message = await source.receive()) {
    const { header } = message;
    if (header.kind !== 'request') throw new ProtocolError(peer, `a ${header.kind} frame comes as a request`);
    const handler = Object.hasOwn(handlers, header.method) ? handlers[header.method] : undefined;
    if (!handler) throw new ProtocolError(peer, `it asks for "${header.method}", which is unknown here`);
    const uploads = leavable(header.uploads ? receiveTensors(source) : nothing());
    const reply: Reply = {
      uploads,
      async tensors(pieces) {
        if (sink) await sendTensors(sink, pieces);
      },
      async event(value) {
        await sink?.send({ kind: 'event', value });
      },
    };
    let failure: Error | undefined;
    let value: unknown;
    try {
      value = await handler(header.params, reply);
    } catch (error) {
      failure = error as Error;
    }
    if (failure && !sink) throw failure;
    // The failure is sent at once: the asking side might spend hours on the rest of its upload.
    if (failure) await sink?.send(failureOf(failure));
    await passOver(uploads);
    if (!failure) await sink?.send({ kind: 'end', value: value ?? null });
  }
}

const failureOf = ({ name, message }: Error) =>
  ({ kind: 'failure', name, message: message.slice(0, MAX_MESSAGE_LENGTH) }) as const;

async function* nothing(): AsyncGenerator<TensorPiece, unknown> {
  yield* [];
  return undefined;
}

interface Leavable extends AsyncIterableIterator<TensorPiece> {
  /** The last result of `next`. */
  readonly asked: Promise<unknown>;
}

/** Wraps an iterator so that leaving a loop over it, for example by an error, does not end the iterator. */
function leavable(pieces: AsyncIterator<TensorPiece, unknown>): Leavable {
  let asked: Promise<unknown> = Promise.resolve();
  return {
    get asked() {
      return asked;
    },
    next() {
      const next = pieces.next();
      asked = next;
      return next;
    },
    [Symbol.asyncIterator]() {
      return this;
    },
  };
}

/** Reads the rest of a request's tensors, because the next request comes after them. */
async function passOver(uploads: Leavable): Promise<void> {
  try {
    await uploads.asked;
    while (!(await uploads.next()).done);
  } catch (error) {
    if (!(error instanceof RemoteError)) throw error; // a RemoteError means that the asking side gave up, which ends the upload too
  }
}

/** Takes the pieces of an answer as they come. It must not wait for a later message of the same channel. */
export type OnPiece = (piece: TensorPiece) => void | Promise<void>;

/** The tensors of a request, and the handlers of its answer. */
export interface Exchange {
  readonly onPiece?: OnPiece | undefined;
  readonly onEvent?: ((value: unknown) => void) | undefined;
  /** Tensors that are sent with the request. */
  readonly uploads?: AsyncIterable<TensorPiece> | Iterable<TensorPiece>;
}

/** Sends a request and resolves with the value that ends its answer. */
export type Requester = (method: string, params: unknown, exchange?: Exchange) => Promise<unknown>;

/** A function that sends requests over a channel. It throws a `RemoteError` if the request failed at the peer, or the error that ends the channel. */
export function createRequester(channel: Channel): Requester {
  let lastSent: Promise<unknown> = Promise.resolve();
  let lastAnswer: Promise<unknown> = Promise.resolve();
  return (method, params, { onPiece, onEvent, uploads } = {}) => {
    const failed = new AbortController();
    /** Whether all tensors of the request were sent, and the local error that stopped them. */
    const upload: Upload = { complete: false };
    const sent = lastSent.then(() => sendRequest(channel, method, params, uploads, failed.signal, upload));
    lastSent = sent.catch(() => {});
    const before = lastAnswer.catch(() => {});
    const answer = (async () => {
      await before;
      const pieces = receiveTensors(channel, onEvent);
      for (;;) {
        const { value, done } = await pieces.next();
        if (!done) {
          if (!onPiece) throw new ProtocolError(channel.peer, `it answers "${method}" with tensors`);
          await onPiece(value);
          continue;
        }
        if (upload.failure) throw upload.failure;
        if (!upload.complete) throw new ProtocolError(channel.peer, `it answers "${method}" before all of it has come`);
        return value;
      }
    })();
    // After any other error than a failure at the peer, later answers could not be matched to their requests.
    const settle = (error: Error): never => {
      failed.abort(error);
      if (error instanceof RemoteError) throw upload.failure ?? error; // the peer only reports the local failure back
      if (error !== upload.failure) channel.fail(error);
      throw error;
    };
    const both = Promise.all([answer.catch(settle), sent.catch(settle)]).then(([value]) => value);
    lastAnswer = both;
    both.catch(() => {});
    return both;
  };
}

interface Upload {
  complete: boolean;
  failure?: Error;
}

/** Sends a request and its tensors. It stops when the request has failed at the peer, or here; then it sends a `failure`. */
async function sendRequest(
  sink: MessageSink,
  method: string,
  params: unknown,
  uploads: Exchange['uploads'],
  failed: AbortSignal,
  upload: Upload,
): Promise<void> {
  await sink.send({ kind: 'request', method, params, ...(uploads && { uploads: true }) });
  if (uploads) {
    try {
      await sendTensors(sink, unlessAborted(uploads, failed));
    } catch (error) {
      if (!failed.aborted) upload.failure = error as Error; // otherwise the answer has the error
      await sink.send(failureOf(error as Error));
      return;
    }
    await sink.send({ kind: 'end', value: null });
  }
  upload.complete = true;
}

async function* unlessAborted(
  pieces: NonNullable<Exchange['uploads']>,
  signal: AbortSignal,
): AsyncGenerator<TensorPiece> {
  for await (const piece of pieces) {
    signal.throwIfAborted();
    yield piece;
  }
}

/** A function that sends requests over a one-way byte stream. Nobody answers: a request that fails at the peer ends the stream. */
export function createTeller(sink: MessageSink): Requester {
  const never = new AbortController().signal;
  return async (method, params, { uploads } = {}) => {
    const upload: Upload = { complete: false };
    await sendRequest(sink, method, params, uploads, never, upload);
    if (upload.failure) throw upload.failure;
    return null;
  };
}
