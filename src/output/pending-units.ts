/** Finished units of which something is still on its way to the file. */
export class PendingUnits {
  private readonly waiting = new Set<{ written(): boolean; resolve(): void }>();

  /** Resolves once `written` holds, which is asked at every `check`. */
  async until(written: () => boolean): Promise<void> {
    if (!written()) await new Promise<void>((resolve) => this.waiting.add({ written, resolve }));
  }

  /** Something was written. */
  check(): void {
    for (const it of this.waiting) {
      if (!it.written()) continue;
      this.waiting.delete(it);
      it.resolve();
    }
  }
}
