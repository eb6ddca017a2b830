import { PeerStalledError } from '../../src/errors.js';
import type { Channel } from '../../src/transport/channel.js';
import type { PeerOptions } from '../machines/peer-options.js';

/** A step of the largest groups takes minutes. */
const STALL_TIMEOUT_MS = 600_000;
/** As a multiple of that, the first wait; of the longest wait so far, that for each later one. */
const FIRST = 6;
const LATER = 10;
/** A timer cannot wait for more. */
const LONGEST_MS = 2 ** 31 - 1;

/** Ends a channel over which nothing of an answer comes for much longer than ever before: its peer lives, and hangs. */
export class StallWatch {
  private readonly leastMs: number;
  private timer: NodeJS.Timeout | undefined;
  private last = 0;
  private longest = 0;

  constructor(
    private readonly channel: Channel,
    { stallTimeoutMs = STALL_TIMEOUT_MS }: PeerOptions,
  ) {
    this.leastMs = stallTimeoutMs;
  }

  /**
   * @param ask is given `seen`, to be called when a part of the answer has come, or one of what goes along has gone; and `aside`,
   * which waits for something of this machine's: the peer is not to blame for that time
   */
  async over<T>(ask: (seen: () => void, aside: (work: Promise<void>) => Promise<void>) => Promise<T>): Promise<T> {
    this.last = performance.now();
    this.wait(FIRST * this.leastMs); // an engine is made, and measures itself
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
