import type { Readable } from 'node:stream';
import { setTimeout as sleep } from 'node:timers/promises';
import { isDeepStrictEqual } from 'node:util';
import { BusyError, PeerLostError, TruncatedStreamError } from '../../src/errors.js';
import type { RunIdentity } from '../../src/output/unfinished-run.js';
import { readByteStream } from '../../src/transport/byte-stream.js';
import type { Channel } from '../../src/transport/channel.js';
import { type Listener, listen } from '../../src/transport/listen.js';
import { answerRequests } from '../../src/transport/requests.js';
import { OUTPUT_SERVICE } from './output-protocol.js';
import { OutputSession, type ReceiveHooks } from './output-session.js';
import type { ListenAt } from './peer-options.js';

export type { ReceiveHooks } from './output-session.js';

/** How long to wait for the peer to close its connection when the result is complete. */
const CLOSE_WITHIN_MS = 5_000;

/** A running `receive`. */
export interface Receiver extends Listener {
  /** Resolves when a result is complete under its final name, or was already there. */
  readonly done: Promise<void>;
}

/**
 * Listens for a conversion on another machine and stores its result in `folder`. One conversion at a time may write, until a
 * result is complete. When a conversion ends early, its finished work is kept for the same conversion to resume, and the rest
 * is removed.
 */
export async function receive(folder: string, at: ListenAt, hooks: ReceiveHooks = {}): Promise<Receiver> {
  let resolveDone: () => void = () => {};
  const done = new Promise<void>((resolve) => {
    resolveDone = resolve;
  });
  /** The session that writes. */
  let writer: { channel: Channel; session: OutputSession; over: Promise<void> } | undefined;
  /** Lets a restarted conversion replace its first connection if that is lost. Throws `BusyError` for any other conversion. */
  const admit = async (run: RunIdentity | undefined): Promise<void> => {
    if (!writer) return;
    const { channel, session, over } = writer;
    if (channel.attached || !run || !isDeepStrictEqual(run.identity, session.run?.identity))
      throw new BusyError(folder);
    channel.fail(new PeerLostError(channel.peer, 'the same conversion was started again'));
    await over;
  };
  const listener = await listen({ ...at, service: OUTPUT_SERVICE, ...hooks }, async (channel) => {
    let end: () => void = () => {};
    const over = new Promise<void>((resolve) => {
      end = resolve;
    });
    const session: OutputSession = new OutputSession(channel.peer, folder, hooks, {
      async take(run) {
        while (writer) await admit(run);
        writer = { channel, session, over };
        hooks.onLog?.(`${channel.peer} writes ${folder}`);
      },
      give() {
        writer = undefined;
        hooks.onLog?.(`${channel.peer} was refused`);
      },
    });
    try {
      await answerRequests(channel, channel, session.handlers);
    } finally {
      await session.end();
      if (writer?.session === session) {
        writer = undefined;
        hooks.onLog?.(howItEnded(channel.peer, folder, session));
      }
      end();
      // Close the connection before `done` resolves, because the caller may then end this process. The result is complete
      // anyway.
      const farewell = session.finished ? channel.close().catch(() => {}) : undefined;
      await Promise.race([farewell, sleep(CLOSE_WITHIN_MS, undefined, { ref: false })]);
      if (session.finished) resolveDone();
    }
  });
  return {
    ...listener,
    done,
    async close() {
      await listener.close();
      while (writer) await writer.over; // after this, another process may write to the folder
    },
  };
}

function howItEnded(peer: string, folder: string, { finished, kept }: OutputSession): string {
  if (finished) return `${folder} is whole`;
  return `${peer} left before the end; ${kept ? 'what was finished is kept, and the same conversion goes on from there' : 'nothing is kept'}`;
}

/**
 * Stores a result that comes through a pipe, from `mobe stream` or a conversion to "-". Throws a `TruncatedStreamError` if the
 * pipe ends early.
 */
export async function receivePipe(folder: string, input: Readable, hooks: ReceiveHooks = {}): Promise<void> {
  const peer = 'standard input';
  const session = new OutputSession(peer, folder, hooks, { async take() {}, give() {} });
  try {
    await answerRequests(readByteStream(input, OUTPUT_SERVICE, peer), undefined, session.handlers);
    if (!session.finished) throw new TruncatedStreamError(peer);
  } finally {
    await session.end();
  }
}
