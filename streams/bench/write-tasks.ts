import { randomFillSync } from 'node:crypto';
import { open } from 'node:fs/promises';
import { join } from 'node:path';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { layoutShards } from '../../src/output/layout.js';
import { OutputFolder } from '../../src/output/output-folder.js';
import { createStageClocks } from '../flow/stage-clock.js';
import type { OutputChunk } from '../records.js';
import { writeOutput } from '../stages/write-output.js';
import { inFolder } from './in-folder.js';
import { type Outcome, startTimer } from './sample.js';
import { BLOCK_BYTES } from './task.js';

/** Writes a file of known size, one block at a time after a header as in a shard, and brings it to the disk. */
export const pwrite = (parent: string, bytes: number): Promise<Outcome> =>
  inFolder(parent, async (folder) => {
    const block = randomFillSync(new Uint8Array(BLOCK_BYTES));
    const stop = startTimer();
    const handle = await open(join(folder, 'raw'), 'wx');
    try {
      await handle.truncate(HEADER_BYTES + bytes);
      await handle.write(block, 0, HEADER_BYTES, 0);
      for (let at = 0; at < bytes; at += BLOCK_BYTES)
        await handle.write(block, 0, Math.min(BLOCK_BYTES, bytes - at), HEADER_BYTES + at);
      await handle.sync();
    } finally {
      await handle.close();
    }
    return { bytes, heldBytes: BLOCK_BYTES, ...stop() };
  });

/** Size of the header that our sink writes for one tensor. */
const HEADER_BYTES = 96;

/** Writes one shard with our sink, from chunks in memory. */
export const ourSink = (parent: string, bytes: number): Promise<Outcome> =>
  inFolder(parent, async (folder) => {
    const block = randomFillSync(new Uint8Array(BLOCK_BYTES));
    const { shards } = layoutShards([{ name: 'tensor', dtype: 'U8', shape: [bytes], bytes }], bytes);
    const clocks = createStageClocks();
    const chunks = function* (): Generator<OutputChunk> {
      for (let offset = 0; offset < bytes; offset += BLOCK_BYTES) {
        const data = block.subarray(0, Math.min(BLOCK_BYTES, bytes - offset));
        clocks.held(data.byteLength);
        yield { tensor: 'tensor', offset, data, release: () => clocks.held(-data.byteLength) };
      }
    };
    const stop = startTimer();
    const output = await OutputFolder.create(join(folder, 'out'), { neededBytes: bytes });
    for (const shard of shards) await output.reserve(shard);
    await pipeline(Readable.from(chunks(), { highWaterMark: 1 }), writeOutput(output));
    await output.commit([]);
    return { bytes, heldBytes: clocks.peakHeldBytes, ...stop() };
  });
