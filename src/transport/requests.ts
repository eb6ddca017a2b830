/**
 * Requests over a channel. They are answered one after the other, in the order they came, so that an answer needs no
 * number; whoever asks may ask again before the last answer is there.
 *
 *     request → tensors and events, then end or failure
 */
import { ProtocolError, RemoteError } from '../errors.js';
import type { Channel } from './channel.js';
import { MAX_MESSAGE_LENGTH } from './limits.js';
import { receiveTensors } from './receive-tensors.js';
import { sendTensors } from './send-tensors.js';
import type { TensorPiece } from './tensor-piece.js';

/** Where a handler puts its answer. */
export interface Reply {
  tensors(pieces: AsyncIterable<TensorPiece> | Iterable<TensorPiece>): Promise<void>;
  /** Something to know on the way: progress, say. */
  event(value: unknown): Promise<void>;
}

/** What it returns ends the answer. What it throws is a `RemoteError` for whoever asked, and the conversation goes on. */
export type Handler = (params: unknown, reply: Reply) => Promise<unknown>;

/** Answers until the peer closes. */
export async function answerRequests(channel: Channel, handlers: Readonly<Record<string, Handler>>): Promise<void> {
  const reply: Reply = {
    tensors: (pieces) => sendTensors(channel, pieces),
    event: (value) => channel.send({ kind: 'event', value }),
  };
  for (let message = await channel.receive(); message; message = await channel.receive()) {
    const { header } = message;
    if (header.kind !== 'request') throw new ProtocolError(channel.peer, `a ${header.kind} frame comes as a request`);
    const handler = Object.hasOwn(handlers, header.method) ? handlers[header.method] : undefined;
    if (!handler) throw new ProtocolError(channel.peer, `it asks for "${header.method}", which is unknown here`);
    try {
      await channel.send({ kind: 'end', value: (await handler(header.params, reply)) ?? null });
    } catch (error) {
      const { name, message: text } = error as Error;
      await channel.send({ kind: 'failure', name, message: text.slice(0, MAX_MESSAGE_LENGTH) });
    }
  }
}

/** Takes the pieces of an answer as they come. Must not wait for anything that comes later over the same channel. */
export type OnPiece = (piece: TensorPiece) => void | Promise<void>;

/** A function that asks. Throws a `RemoteError` when the request failed there, and what ends the channel. */
export function createRequester(
  channel: Channel,
): (method: string, params: unknown, onPiece?: OnPiece, onEvent?: (value: unknown) => void) => Promise<unknown> {
  let last: Promise<unknown> = Promise.resolve();
  return (method, params, onPiece, onEvent) => {
    const sent = channel.send({ kind: 'request', method, params });
    const before = last.catch(() => {});
    const answer = (async () => {
      await sent;
      await before;
      const pieces = receiveTensors(channel, onEvent);
      for (;;) {
        const { value, done } = await pieces.next();
        if (done) return value;
        if (!onPiece) throw new ProtocolError(channel.peer, `it answers "${method}" with tensors`);
        await onPiece(value);
      }
    })();
    last = answer;
    answer.catch((error) => {
      // After anything else the answers that follow could not be told apart.
      if (!(error instanceof RemoteError)) channel.fail(error);
    });
    return answer;
  };
}
