import { PeerStalledError } from '../../src/errors.js';
import type { Channel } from '../../src/transport/channel.js';
import type { PeerOptions } from '../machines/peer-options.js';

/** The shortest wait. It is long because a step of the largest groups takes minutes. */
const STALL_TIMEOUT_MS = 600_000;
/** The first wait, as a multiple of the shortest: the peer still has to make its engine and measure itself. */
const FIRST = 6;
/** Each later wait, as a multiple of the longest pause seen so far. */
const LATER = 10;
/** The longest delay of a timer. */
const LONGEST_MS = 2 ** 31 - 1;

/** Fails a channel with `PeerStalledError` when no part of an answer has come for much longer than before: the peer hangs. */
export class StallWatch {
  private readonly leastMs: number;
  private timer: NodeJS.Timeout | undefined;
  private last = 0;
  private longest = 0;

  constructor(
    private readonly channel: Pick<Channel, 'peer' | 'fail'>,
    { stallTimeoutMs = STALL_TIMEOUT_MS }: PeerOptions,
  ) {
    this.leastMs = stallTimeoutMs;
  }

  /**
   * Watches one request.
   * @param ask gets two functions. It calls `seen` when a part of the answer has come or a part of the request has gone out. It
   * calls `aside` to wait for work of this machine, which does not count as a pause of the peer.
   */
  async over<T>(ask: (seen: () => void, aside: (work: Promise<void>) => Promise<void>) => Promise<T>): Promise<T> {
    this.last = performance.now();
    this.wait(FIRST * this.leastMs);
    const seen = (): void => {
      const now = performance.now();
      this.longest = Math.max(this.longest, now - this.last);
      this.last = now;
      this.wait(Math.max(this.leastMs, LATER * this.longest));
    };
    const aside = async (work: Promise<void>): Promise<void> => {
      clearTimeout(this.timer);
      await work;
      this.last = performance.now();
      this.wait(Math.max(this.leastMs, LATER * this.longest));
    };
    try {
      return await ask(seen, aside);
    } finally {
      clearTimeout(this.timer);
    }
  }

  private wait(ms: number): void {
    const { channel } = this;
    clearTimeout(this.timer);
    const patience = Math.min(ms, LONGEST_MS);
    this.timer = setTimeout(
      () => channel.fail(new PeerStalledError(channel.peer, Math.round(patience / 1000))),
      patience,
    );
  }
}
