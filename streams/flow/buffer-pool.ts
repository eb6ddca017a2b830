/**
 * Memory that is reused for reads. The system would map and zero a new block for every read, which costs as much as copying the
 * bytes from the page cache. The memory is shared with the thread that hashes it.
 */
export interface PooledBuffer {
  readonly bytes: Uint8Array;
  /** Gives the memory to the next read. The caller must not use it afterwards. */
  release(): void;
}

/** Called when a stage holds more bytes (positive) or fewer (negative). */
export type OnHeld = (bytes: number) => void;

/** Lends at most `count` buffers of `size` bytes at a time. A caller that needs one more waits. Buffers are allocated when first needed. */
export class BufferPool {
  private readonly idle: Array<Uint8Array<SharedArrayBuffer>> = [];
  private readonly queue: Array<(buffer: PooledBuffer) => void> = [];
  private made = 0;

  constructor(
    readonly count: number,
    readonly size: number,
    private readonly onHeld: OnHeld = () => {},
  ) {}

  /** Resolves with the next free buffer. */
  take(): Promise<PooledBuffer> {
    const bytes = this.idle.pop() ?? (this.made < this.count ? this.make() : undefined); // the last one is still in the CPU's cache
    return bytes ? Promise.resolve(this.lend(bytes)) : new Promise((resolve) => this.queue.push(resolve));
  }

  private make(): Uint8Array<SharedArrayBuffer> {
    this.made++;
    return new Uint8Array(new SharedArrayBuffer(this.size));
  }

  private lend(bytes: Uint8Array<SharedArrayBuffer>): PooledBuffer {
    this.onHeld(this.size);
    let lent = true;
    const release = (): void => {
      if (!lent) return;
      lent = false;
      this.onHeld(-this.size);
      const next = this.queue.shift();
      if (next) next(this.lend(bytes));
      else this.idle.push(bytes);
    };
    return { bytes, release };
  }
}
