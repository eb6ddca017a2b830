/** SHA-256 on other threads, so that hashing runs while other bytes are read and written. */
import { createHash, webcrypto } from 'node:crypto';
import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';

/** A request to a thread. The answer has the same id. */
export interface HashRequest {
  readonly id: number;
  readonly bytes: Uint8Array<SharedArrayBuffer>;
}

/** An answer of a thread. */
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
  if (isShared(bytes)) return freeThread().hash(bytes);
  return Buffer.from(await webcrypto.subtle.digest('SHA-256', bytes as Uint8Array<ArrayBuffer>)).toString('hex');
}

const isShared = (bytes: Uint8Array): bytes is Uint8Array<SharedArrayBuffer> =>
  bytes.buffer instanceof SharedArrayBuffer;

/** The threads of this process. Each lives from its first use on. */
const threads: HashThread[] = [];
/** One thread hashes blocks more slowly than the page cache gives them. So there may be one for each processor. */
const MOST_THREADS = availableParallelism();

/** A thread that has nothing to do, a new one, or the one with the least to do. */
function freeThread(): HashThread {
  const [least] = threads.toSorted((a, b) => a.load - b.load);
  if (least && (least.load === 0 || threads.length === MOST_THREADS)) return least;
  const thread = new HashThread(() => threads.splice(threads.indexOf(thread), 1));
  threads.push(thread);
  return thread;
}

class HashThread {
  private readonly worker = new Worker(new URL('./sha256-worker.js', import.meta.url));
  private readonly waiting = new Map<number, { resolve(sha256: string): void; reject(error: Error): void }>();
  private last = 0;

  /** @param onFailed called when the thread can hash no more */
  constructor(onFailed: () => void) {
    this.worker.on('message', ({ id, sha256 }: HashReply) => {
      this.waiting.get(id)?.resolve(sha256);
      this.settled(id);
    });
    this.worker.on('error', (error: Error) => {
      onFailed();
      for (const [id, { reject }] of this.waiting) {
        reject(error);
        this.settled(id);
      }
    });
    this.worker.unref();
  }

  /** Hashes that are not finished. */
  get load(): number {
    return this.waiting.size;
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
