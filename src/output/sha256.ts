/** SHA-256 on another thread, so that bytes are hashed while others are read and written. */
import { createHash, webcrypto } from 'node:crypto';
import { Worker } from 'node:worker_threads';

/** Sent to the thread; its answer has the same number. */
export interface HashRequest {
  readonly id: number;
  readonly bytes: Uint8Array<SharedArrayBuffer>;
}

export interface HashReply {
  readonly id: number;
  readonly sha256: string;
}

/** To hash so few takes no longer than to hand them to a thread. */
const SMALL_BYTES = 32 * 1024;

/** Who checks many parts does so many at a time: as many threads hash (libuv's pool), while others are read. */
export const HASHES_AT_ONCE = 4;

/** In hexadecimal. `bytes` must stay as they are until then; those in shared memory are not copied. */
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

/** One for the process, from its first use on. */
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
      this.worker.ref(); // the process must not end while somebody waits for it
      this.worker.postMessage({ id, bytes } satisfies HashRequest);
    });
  }

  private settled(id: number): void {
    this.waiting.delete(id);
    if (this.waiting.size === 0) this.worker.unref();
  }
}
