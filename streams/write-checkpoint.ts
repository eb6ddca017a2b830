/** Sink: every chunk to its place in the reserved shards, in whatever order they come. */
import { Writable } from 'node:stream';
import type { Output } from '../src/checkpoint/output-folder.js';
import type { OutputChunk } from './records.js';

export function writeCheckpoint(output: Output, onBytes: (bytes: number) => void): Writable {
  let total = 0;
  return new Writable({
    objectMode: true,
    highWaterMark: 1,
    write({ tensor, offset, data }: OutputChunk, _encoding, done) {
      output.write(tensor, offset, data).then(() => {
        total += data.byteLength;
        onBytes(total);
        done();
      }, done);
    },
  });
}
