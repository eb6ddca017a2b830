/**
 * Requests over a channel. They are answered one after the other, in the order they came, so that an answer needs no
 * number; whoever asks may ask again before the last answer is there.
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

/** What comes with a request, and where a handler puts its answer. */
export interface Reply {
  /** The tensors that came with the request; none where it has none. What is not read is passed over. */
  readonly uploads: AsyncIterableIterator<TensorPiece>;
  tensors(pieces: AsyncIterable<TensorPiece> | Iterable<TensorPiece>): Promise<void>;
  /** Something to know on the way: progress, say. */
  event(value: unknown): Promise<void>;
}

/** What it returns ends the answer. What it throws is a `RemoteError` for whoever asked, and the conversation goes on. */
export type Handler = (params: unknown, reply: Reply) => Promise<unknown>;

/**
 * Answers until the peer closes.
 * @param sink undefined: nobody listens for answers, so what fails ends it
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
    // At once: whoever asked may have hours of work before the last that comes along.
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
  /** What was asked for last. */
  readonly asked: Promise<unknown>;
}

/** A loop over it may be left, by an error for one, without ending what it reads from. */
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

/** Reads on to the end of what came with a request: the next request comes after it. */
async function passOver(uploads: Leavable): Promise<void> {
  try {
    await uploads.asked;
    while (!(await uploads.next()).done);
  } catch (error) {
    if (!(error instanceof RemoteError)) throw error; // the side that asked has given up: that ends it too
  }
}

/** Takes the pieces of an answer as they come. Must not wait for anything that comes later over the same channel. */
export type OnPiece = (piece: TensorPiece) => void | Promise<void>;

export interface Exchange {
  readonly onPiece?: OnPiece | undefined;
  readonly onEvent?: ((value: unknown) => void) | undefined;
  /** Goes along with the request. */
  readonly uploads?: AsyncIterable<TensorPiece> | Iterable<TensorPiece>;
}

export type Requester = (method: string, params: unknown, exchange?: Exchange) => Promise<unknown>;

/** A function that asks. It throws a `RemoteError` when the request failed there, and what ends the channel. */
export function createRequester(channel: Channel): Requester {
  let lastSent: Promise<unknown> = Promise.resolve();
  let lastAnswer: Promise<unknown> = Promise.resolve();
  return (method, params, { onPiece, onEvent, uploads } = {}) => {
    const failed = new AbortController();
    /** Why what goes along was given up here, and whether all of it has gone. */
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
    // After anything but a failure there the answers that follow could not be told apart.
    const settle = (error: Error): never => {
      failed.abort(error);
      if (error instanceof RemoteError) throw upload.failure ?? error; // the peer was told, and says so
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

/** What goes along is broken off when the request has failed at the other side; or here, which the other side is told. */
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
      if (!failed.aborted) upload.failure = error as Error; // else the answer tells
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

/** The same requests one way, over a byte stream: nobody answers. What fails there ends the stream. */
export function createTeller(sink: MessageSink): Requester {
  const never = new AbortController().signal;
  return async (method, params, { uploads } = {}) => {
    const upload: Upload = { complete: false };
    await sendRequest(sink, method, params, uploads, never, upload);
    if (upload.failure) throw upload.failure;
    return null;
  };
}
