/** Sink: every chunk to its place in the reserved shards, in whatever order they come; and the report of each finished group. */
import { Writable } from 'node:stream';
import type { GroupReport } from '../../src/conversion/run-report.js';
import type { Output } from '../../src/output/output.js';
import type { OutputRecord } from '../records.js';

/** With two, one block is hashed while another is written. More would only wait: a file is written by one at a time. */
const WRITES_IN_FLIGHT = 2;

export interface WriteHooks {
  /** Told how many bytes were written so far. */
  readonly onBytes?: (bytes: number) => void;
  /** Notes that a group is finished. Its chunks were handed over before, but may still be being written. */
  readonly onFinished?: (report: GroupReport) => Promise<void>;
}

export function writeOutput(output: Pick<Output, 'write'>, { onBytes, onFinished }: WriteHooks = {}): Writable {
  let total = 0;
  let writing = 0;
  const notes: Array<Promise<void>> = [];
  /** Whoever waits for room, or in the end for the last write. */
  let proceed: (() => void) | undefined;
  const sink = new Writable({
    objectMode: true,
    highWaterMark: 1,
    write(record: OutputRecord, _encoding, done) {
      if ('finished' in record) {
        const noted = Promise.resolve(onFinished?.(record.finished));
        noted.catch((error) => sink.destroy(error));
        notes.push(noted);
        done();
        return;
      }
      const { tensor, offset, data, release } = record;
      writing++;
      const { byteLength } = data;
      output.write(tensor, offset, data).then(
        () => {
          writing--;
          if (!sink.destroyed) release?.(); // nobody may begin another read then
          total += byteLength;
          onBytes?.(total);
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
        if (writing > 0) proceed = finish;
        else
          Promise.all(notes).then(
            () => done(),
            (error) => done(error),
          );
      };
      finish();
    },
  });
  return sink;
}
