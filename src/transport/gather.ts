import { ProtocolError } from '../errors.js';

const FIRST_BYTES = 64 * 1024;

/**
 * Bytes that come in pieces, however small. Memory grows with what has come, not with what was announced, and nothing is kept of
 * the pieces themselves.
 */
export class Gatherer {
  private held = new Uint8Array(FIRST_BYTES);
  private size = 0;

  /** @param what it is, for people */
  constructor(
    private readonly peer: string,
    private readonly what: string,
    private readonly most: number,
  ) {}

  get byteLength(): number {
    return this.size;
  }

  /** Throws a `ProtocolError` where it is too much. */
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

  /** All of them; not to be added to any more. */
  get bytes(): Uint8Array<ArrayBuffer> {
    return this.held.subarray(0, this.size);
  }
}
