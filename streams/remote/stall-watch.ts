import { PeerStalledError } from '../../src/errors.js';
import type { Channel } from '../../src/transport/channel.js';
import type { PeerOptions } from './peer-options.js';

/** A step of the largest groups takes minutes. */
const STALL_TIMEOUT_MS = 600_000;
/** As a multiple of that, the wait for the first part of an answer; of the longest wait so far, that for each later one. */
const FIRST = 6;
const LATER = 10;

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

  /** @param ask is given what is to be called when a part of the answer has come */
  async over<T>(ask: (seen: () => void) => Promise<T>): Promise<T> {
    this.last = performance.now();
    this.wait(FIRST * this.leastMs); // the first step may come after gigabytes of experts
    const seen = (): void => {
      const now = performance.now();
      this.longest = Math.max(this.longest, now - this.last);
      this.last = now;
      this.wait(Math.max(this.leastMs, LATER * this.longest));
    };
    try {
      return await ask(seen);
    } finally {
      clearTimeout(this.timer);
    }
  }

  private wait(ms: number): void {
    const { channel } = this;
    clearTimeout(this.timer);
    this.timer = setTimeout(() => channel.fail(new PeerStalledError(channel.peer, Math.round(ms / 1000))), ms);
  }
}
