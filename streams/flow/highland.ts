/// <reference types="highland" preserve="true" />
/**
 * Highland composes streams, and node:stream ends them. With Highland alone a pipeline that fails hangs and leaves its source
 * open. Here an async generator destroys both ends when it ends, with or without an error.
 */
import { Readable } from 'node:stream';
import _ from 'highland';

const ONE_AHEAD = { objectMode: true, highWaterMark: 1 } as const;

type Transform<I, O> = (stream: Highland.Stream<I>) => Highland.Stream<O>;

/** Makes transforms for `stream.through(…)`. */
export interface Composer {
  /** More records, as a stream. */
  from<T>(records: AsyncIterable<T>): Highland.Stream<T>;
  /** A stage that is written as an async generator. */
  stage<I, O>(through: (input: AsyncIterable<I>) => AsyncIterable<O>): Transform<I, O>;
  /**
   * Runs `limit` lanes at once. Each lane takes one record after another, and what the lanes yield comes in the order in which it is
   * made. No lane waits for another. So a lane that must start again gets what the others hold once they are done.
   */
  lanes<I, O>(limit: number, lane: (record: I) => AsyncIterable<O>): Transform<I, O>;
}

/** Runs a Highland composition over `input`. Each stage pulls at most one record ahead. */
export async function* compose<I, O>(
  input: AsyncIterable<I>,
  build: (stream: Highland.Stream<I>, composer: Composer) => Highland.Stream<O>,
): AsyncGenerator<O> {
  const open: Readable[] = [];
  const read = <T>(records: AsyncIterable<T>): Highland.Stream<T> => {
    const readable = Readable.from(records, ONE_AHEAD);
    open.push(readable);
    return _<T>(readable);
  };
  const iterate = <T>(stream: Highland.Stream<T>): AsyncIterable<T> => {
    const readable = stream.toNodeStream(ONE_AHEAD) as Readable;
    open.push(readable);
    return readable;
  };
  const composer: Composer = {
    from: read,
    stage: (through) => (stream) => read(through(iterate(stream))),
    lanes:
      <R, P>(limit: number, lane: (record: R) => AsyncIterable<P>) =>
      (stream: Highland.Stream<R>) => {
        const records = iterate(stream)[Symbol.asyncIterator]();
        async function* run(): AsyncGenerator<P> {
          for (let next = await records.next(); !next.done; next = await records.next()) yield* lane(next.value);
        }
        return _(Array.from({ length: limit }, () => read(run()))).merge();
      },
  };
  try {
    yield* iterate(build(read(input), composer));
  } finally {
    for (const readable of open.reverse()) readable.destroy();
  }
}

/** The records of all inputs, in the order in which they come. */
export async function* merge<T>(inputs: ReadonlyArray<AsyncIterable<T>>): AsyncGenerator<T> {
  const [first, ...others] = inputs;
  if (first) yield* compose(first, (stream, { from }) => _([stream, ...others.map(from)]).merge());
}
