import { createReadStream } from 'node:fs';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { PASS_THROUGH_BLOCKS } from '../../src/conversion/memory-plan.js';
import { BufferPool } from '../flow/buffer-pool.js';
import { createStageClocks } from '../flow/stage-clock.js';
import { passThrough } from '../stages/pass-through.js';
import { type Outcome, startTimer } from './sample.js';
import { planCopy } from './sample-model.js';
import { BLOCK_BYTES, type SampleOfModel } from './task.js';

const files = ({ folder, shards }: SampleOfModel): string[] => shards.map((shard) => join(folder, shard));

/** Reads one block at a time into one buffer. No way of reading is faster here. */
export async function pread(source: SampleOfModel): Promise<Outcome> {
  const buffer = new Uint8Array(BLOCK_BYTES);
  let bytes = 0;
  const stop = startTimer();
  for (const file of files(source)) {
    const handle = await open(file);
    try {
      for (let at = 0; ; ) {
        const { bytesRead } = await handle.read(buffer, 0, buffer.byteLength, at);
        if (bytesRead === 0) break;
        at += bytesRead;
        bytes += bytesRead;
      }
    } finally {
      await handle.close();
    }
  }
  return { bytes, heldBytes: BLOCK_BYTES, ...stop() };
}

/**
 * Reads with `createReadStream`.
 * @param blockBytes `highWaterMark`; default: Node's
 */
export async function readStream(source: SampleOfModel, blockBytes?: number): Promise<Outcome> {
  let bytes = 0;
  const stop = startTimer();
  for (const file of files(source)) {
    const stream = createReadStream(file, blockBytes === undefined ? {} : { highWaterMark: blockBytes });
    for await (const chunk of stream) bytes += (chunk as Buffer).byteLength;
  }
  return { bytes, ...stop() };
}

/** Reads with our pass-through stage and releases each block at once. */
export async function ourSource(source: SampleOfModel): Promise<Outcome> {
  const checkpoint = await openCheckpoint(source.folder);
  const { copies } = planCopy(checkpoint, source.shards);
  const clocks = createStageClocks();
  const pool = new BufferPool(PASS_THROUGH_BLOCKS, BLOCK_BYTES, clocks.held);
  let bytes = 0;
  const stop = startTimer(); // reading headers is measured separately
  for await (const { data, release } of passThrough(copies, checkpoint.files, pool)) {
    bytes += data.byteLength;
    release?.();
  }
  const time = stop();
  await checkpoint.files.close();
  return { bytes, ...time, heldBytes: clocks.peakHeldBytes };
}
