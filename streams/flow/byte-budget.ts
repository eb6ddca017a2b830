import type { OnHeld } from './buffer-pool.js';

/** Bytes that were granted. `release` gives them back; calling it again does nothing. */
export interface Lease {
  release(): void;
}

/**
 * Limits the bytes in flight. Node's high-water marks count objects, and sixteen tensors may be a gigabyte. So a stage acquires
 * bytes here before it reads, and the last user of the bytes releases them.
 */
export class ByteBudget {
  private held = 0;
  private readonly queue: Array<{ bytes: number; grant: (lease: Lease) => void }> = [];

  /**
   * @param limit bytes
   * @param onHeld called at every change of the bytes held
   */
  constructor(
    readonly limit: number,
    private readonly onHeld: OnHeld = () => {},
  ) {}

  /** Resolves once the bytes fit, in the order of the calls. A request above the limit is granted when nothing else is held. */
  acquire(bytes: number): Promise<Lease> {
    return new Promise((resolve) => {
      this.queue.push({ bytes, grant: resolve });
      this.serve();
    });
  }

  private lease(bytes: number): Lease {
    let released = false;
    return {
      release: () => {
        if (released) return;
        released = true;
        this.held -= bytes;
        this.onHeld(-bytes);
        this.serve();
      },
    };
  }

  private serve(): void {
    for (let next = this.queue[0]; next; next = this.queue[0]) {
      if (this.held > 0 && this.held + next.bytes > this.limit) return;
      this.queue.shift();
      this.held += next.bytes;
      this.onHeld(next.bytes);
      next.grant(this.lease(next.bytes));
    }
  }
}
