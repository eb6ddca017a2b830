import type { OnHeld } from './buffer-pool.js';

/**
 * Bytes in flight. Node's high-water marks count objects, and sixteen tensors may be a gigabyte; a stage that reads asks
 * here first, and whoever is done with the bytes gives them back.
 */
export class ByteBudget {
  private held = 0;
  private readonly queue: Array<{ bytes: number; grant: () => void }> = [];

  /** @param onHeld told of every change of the bytes held */
  constructor(
    readonly limit: number,
    private readonly onHeld: OnHeld = () => {},
  ) {}

  /** Resolves, in the order asked, once the bytes fit. A request larger than the limit is granted alone. */
  acquire(bytes: number): Promise<void> {
    return new Promise((resolve) => {
      this.queue.push({ bytes, grant: resolve });
      this.serve();
    });
  }

  release(bytes: number): void {
    this.held -= bytes;
    this.onHeld(-bytes);
    this.serve();
  }

  private serve(): void {
    for (let next = this.queue[0]; next; next = this.queue[0]) {
      if (this.held > 0 && this.held + next.bytes > this.limit) return;
      this.queue.shift();
      this.held += next.bytes;
      this.onHeld(next.bytes);
      next.grant();
    }
  }
}
