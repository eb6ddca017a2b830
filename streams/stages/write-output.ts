/**
 * The sink of the pipeline: it writes every chunk to its place in the reserved shards, in any order, and notes finished groups.
 */
import { Writable } from 'node:stream';
import type { GroupReport } from '../../src/conversion/run-report.js';
import type { Output } from '../../src/output/output.js';
import type { OutputRecord } from '../records.js';

/**
 * Two, so that one block is hashed while another is written. More would only wait, because a file takes one write at a time.
 */
const WRITES_IN_FLIGHT = 2;

/** Callbacks of `writeOutput`. */
export interface WriteHooks {
  /** Called after each write with the number of bytes written so far. */
  readonly onBytes?: (bytes: number) => void;
  /** Called when all chunks of a group have been handed over. Some may still be on their way to the output. */
  readonly onFinished?: (report: GroupReport) => Promise<void>;
}

/** A writable stream into `output`. It is destroyed with the first error of a write or of `onFinished`. */
export function writeOutput(output: Pick<Output, 'write'>, { onBytes, onFinished }: WriteHooks = {}): Writable {
  let total = 0;
  let writing = 0;
  const notes: Array<Promise<void>> = [];
  /** Continues the stream when a write has ended. */
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
          if (!sink.destroyed) release?.(); // after a failure, no new read may start
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
