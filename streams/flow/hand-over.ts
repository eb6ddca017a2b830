/** Hands what callbacks give to whoever iterates. */
export class HandOver<T> implements AsyncIterable<T> {
  private readonly items: T[] = [];
  private ended = false;
  private failure: Error | undefined;
  /** Wakes the iteration. */
  private arrived = (): void => {};
  /** Wakes who waits for room. */
  private taken = (): void => {};

  push(item: T): void {
    this.items.push(item);
    this.arrived();
  }

  /** No more comes. What came before is still handed over, and then the error thrown. */
  end(failure?: Error): void {
    this.ended = true;
    this.failure ??= failure;
    this.arrived();
  }

  /** Resolves when fewer than `most` items wait, or nobody iterates any more. One may wait at a time. */
  async room(most: number): Promise<void> {
    while (this.items.length >= most && !this.ended)
      await new Promise<void>((resolve) => {
        this.taken = resolve;
      });
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<T> {
    try {
      for (;;) {
        if (this.items.length > 0) {
          yield this.items.shift() as T;
          this.taken();
          continue;
        }
        if (this.failure) throw this.failure;
        if (this.ended) return;
        await new Promise<void>((resolve) => {
          this.arrived = resolve;
        });
      }
    } finally {
      this.ended = true;
      this.taken();
    }
  }
}
