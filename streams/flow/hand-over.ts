/** Passes items from callbacks to a consumer that iterates over them. */
export class HandOver<T> implements AsyncIterable<T> {
  private readonly items: T[] = [];
  private ended = false;
  private failure: Error | undefined;
  /** Wakes the iteration. */
  private arrived = (): void => {};
  /** Wakes the caller that waits for room. */
  private taken = (): void => {};

  push(item: T): void {
    this.items.push(item);
    this.arrived();
  }

  /** Ends the items. The iteration still returns those that were pushed before, and then throws `failure` if it is given. */
  end(failure?: Error): void {
    this.ended = true;
    this.failure ??= failure;
    this.arrived();
  }

  /** Resolves when fewer than `most` items wait, or when nobody iterates any more. Only one caller may wait at a time. */
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
