/** Runs inside a thread of sha256.ts. */
import { createHash } from 'node:crypto';
import { parentPort } from 'node:worker_threads';
import type { HashReply, HashRequest } from './sha256.js';

parentPort?.on('message', ({ id, bytes }: HashRequest) => {
  parentPort?.postMessage({ id, sha256: createHash('sha256').update(bytes).digest('hex') } satisfies HashReply);
});
