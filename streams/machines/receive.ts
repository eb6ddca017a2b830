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

/** How long a peer whose result is whole is waited for. */
const CLOSE_WITHIN_MS = 5_000;

export interface Receiver extends Listener {
  /** Resolves once a result is whole under its final name, or was there already. */
  readonly done: Promise<void>;
}

/**
 * Keeps in `folder` the result of a conversion that runs elsewhere: one at a time, until one is whole. Of one that ends early,
 * what can be continued is left, as where a conversion runs here; the rest is removed.
 */
export async function receive(folder: string, at: ListenAt, hooks: ReceiveHooks = {}): Promise<Receiver> {
  let resolveDone: () => void = () => {};
  const done = new Promise<void>((resolve) => {
    resolveDone = resolve;
  });
  /** The conversation that writes. */
  let writer: { channel: Channel; session: OutputSession; over: Promise<void> } | undefined;
  /** A conversion that was started again need not wait until its first connection is given up. */
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
      // First the peer's farewell, since whoever waits for the result may end this process; but it is whole without.
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
      while (writer) await writer.over; // the folder is another's to write from then on
    },
  };
}

function howItEnded(peer: string, folder: string, { finished, kept }: OutputSession): string {
  if (finished) return `${folder} is whole`;
  return `${peer} left before the end; ${kept ? 'what was finished is kept, and the same conversion goes on from there' : 'nothing is kept'}`;
}

/** The same from a pipe: what `mobe stream` or a conversion to "-" wrote. Throws a `TruncatedStreamError` where it ends early. */
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
