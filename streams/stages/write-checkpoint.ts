/** Sink: every chunk to its place in the reserved shards, in whatever order they come. */
import { Writable } from 'node:stream';
import type { Output } from '../../src/output/output-folder.js';
import type { OutputChunk } from '../records.js';

/** With two, one block is hashed while another is written. More would only wait: a file is written by one at a time. */
const WRITES_IN_FLIGHT = 2;

export function writeCheckpoint(output: Pick<Output, 'write'>, onBytes: (bytes: number) => void): Writable {
  let total = 0;
  let writing = 0;
  /** Whoever waits for room, or in the end for the last write. */
  let proceed: (() => void) | undefined;
  const sink = new Writable({
    objectMode: true,
    highWaterMark: 1,
    write({ tensor, offset, data, release }: OutputChunk, _encoding, done) {
      writing++;
      const { byteLength } = data;
      output.write(tensor, offset, data).then(
        () => {
          writing--;
          if (!sink.destroyed) release?.(); // nobody may begin another read then
          total += byteLength;
          onBytes(total);
          const next = proceed;
          proceed = undefined;
          next?.();
        },
        (error) => sink.destroy(error),
      );
      if (writing < WRITES_IN_FLIGHT) done();
      else proceed = done;
    },
    final(done) {
      const finish = (): void => {
        if (writing === 0) done();
        else proceed = finish;
      };
      finish();
    },
  });
  return sink;
}
