/** Units that wait until all their data is written. */
export class PendingUnits {
  private readonly waiting = new Set<{ written(): boolean; resolve(): void }>();

  /** Resolves when `written` returns true. It is called at every `check`. */
  async until(written: () => boolean): Promise<void> {
    if (!written()) await new Promise<void>((resolve) => this.waiting.add({ written, resolve }));
  }

  /** To be called after every write. */
  check(): void {
    for (const it of this.waiting) {
      if (!it.written()) continue;
      this.waiting.delete(it);
      it.resolve();
    }
  }
}
