/** SHA-256 on another thread, so that hashing runs while other bytes are read and written. */
import { createHash, webcrypto } from 'node:crypto';
import { Worker } from 'node:worker_threads';

/** A request to the thread. The answer has the same id. */
export interface HashRequest {
  readonly id: number;
  readonly bytes: Uint8Array<SharedArrayBuffer>;
}

/** An answer of the thread. */
export interface HashReply {
  readonly id: number;
  readonly sha256: string;
}

/** Up to this size, hashing takes no longer than passing the bytes to a thread. */
const SMALL_BYTES = 32 * 1024;

/** How many parts to check at a time: as many as libuv's pool has threads. */
export const HASHES_AT_ONCE = 4;

/** The SHA-256 in hexadecimal. `bytes` must not change before it resolves. Shared memory is not copied. */
export async function sha256(bytes: Uint8Array): Promise<string> {
  if (bytes.byteLength <= SMALL_BYTES) return createHash('sha256').update(bytes).digest('hex');
  if (isShared(bytes)) {
    thread ??= new HashThread();
    return thread.hash(bytes);
  }
  return Buffer.from(await webcrypto.subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>)).toString('hex');
}

const isShared = (bytes: Uint8Array): bytes is Uint8Array<SharedArrayBuffer> =>
  bytes.buffer instanceof SharedArrayBuffer;

/** The thread of this process, from its first use on. */
let thread: HashThread | undefined;

class HashThread {
  private readonly worker = new Worker(new URL('./sha256-worker.js', import.meta.url));
  private readonly waiting = new Map<number, { resolve(sha256: string): void; reject(error: Error): void }>();
  private last = 0;

  constructor() {
    this.worker.on('message', ({ id, sha256 }: HashReply) => {
      this.waiting.get(id)?.resolve(sha256);
      this.settled(id);
    });
    this.worker.on('error', (error: Error) => {
      thread = undefined;
      for (const [id, { reject }] of this.waiting) {
        reject(error);
        this.settled(id);
      }
    });
    this.worker.unref();
  }

  hash(bytes: Uint8Array<SharedArrayBuffer>): Promise<string> {
    const id = ++this.last;
    return new Promise((resolve, reject) => {
      this.waiting.set(id, { resolve, reject });
      this.worker.ref(); // keeps the process alive until the answer comes
      this.worker.postMessage({ id, bytes } satisfies HashRequest);
    });
  }

  private settled(id: number): void {
    this.waiting.delete(id);
    if (this.waiting.size === 0) this.worker.unref();
  }
}
