/**
 * Memory that reads use again and again. A new block is mapped, zeroed and given back for every read, which costs as much as
 * copying its bytes out of the page cache. It is shared with the thread that hashes what was read.
 */
export interface PooledBuffer {
  readonly bytes: Uint8Array;
  /** Gives the memory to the next read. Nobody may look at it afterwards. */
  release(): void;
}

/** What the bytes of a stage in flight are told to: more held (positive), or less. */
export type OnHeld = (bytes: number) => void;

/** At most `count` buffers of `size` bytes are out at a time; who asks for one more waits. They are made when first needed. */
export class BufferPool {
  private readonly idle: Array<Uint8Array<SharedArrayBuffer>> = [];
  private readonly queue: Array<(buffer: PooledBuffer) => void> = [];
  private made = 0;

  constructor(
    readonly count: number,
    readonly size: number,
    private readonly onHeld: OnHeld = () => {},
  ) {}

  take(): Promise<PooledBuffer> {
    const bytes = this.idle.pop() ?? (this.made < this.count ? this.make() : undefined); // the last one is still in the cache
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
