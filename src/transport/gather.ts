import { ProtocolError } from '../errors.js';

const FIRST_BYTES = 64 * 1024;

/**
 * Joins bytes that come in pieces. Memory grows with the bytes that came, not with the announced size. The pieces are copied,
 * not kept.
 */
export class Gatherer {
  private held = new Uint8Array(FIRST_BYTES);
  private size = 0;

  /**
   * @param what name of the data in errors
   * @param most bytes
   */
  constructor(
    private readonly peer: string,
    private readonly what: string,
    private readonly most: number,
  ) {}

  get byteLength(): number {
    return this.size;
  }

  /** Adds a piece. Throws a `ProtocolError` if there are more than `most` bytes. */
  add(data: Uint8Array): void {
    const size = this.size + data.byteLength;
    if (size > this.most) throw new ProtocolError(this.peer, `${this.what} has more than ${this.most} bytes`);
    if (size > this.held.byteLength) {
      const larger = new Uint8Array(Math.min(this.most, Math.max(size, 2 * this.held.byteLength)));
      larger.set(this.held.subarray(0, this.size));
      this.held = larger;
    }
    this.held.set(data, this.size);
    this.size = size;
  }

  /** All bytes. Do not call `add` afterwards. */
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.held.subarray(0, this.size);
  }
}
