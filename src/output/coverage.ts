/** The bytes of a file or tensor that were written, as sorted disjoint ranges. */
export class Coverage {
  private ranges: Array<{ start: number; end: number }> = [];

  add(start: number, end: number): void {
    if (start >= end) return;
    const last = this.ranges.at(-1);
    if (!last || last.end < start) {
      this.ranges.push({ start, end });
      return;
    }
    const touching = this.ranges.filter((it) => it.end >= start && it.start <= end);
    const merged = {
      start: Math.min(start, ...touching.map((it) => it.start)),
      end: Math.max(end, ...touching.map((it) => it.end)),
    };
    this.ranges = [...this.ranges.filter((it) => !touching.includes(it)), merged].sort((a, b) => a.start - b.start);
  }

  covers(start: number, end: number): boolean {
    return start >= end || this.ranges.some((it) => it.start <= start && it.end >= end);
  }

  get bytes(): number {
    return this.ranges.reduce((sum, { start, end }) => sum + end - start, 0);
  }
}
