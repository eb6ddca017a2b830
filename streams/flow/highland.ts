/// <reference types="highland" preserve="true" />
/**
 * Highland composes streams, and node:stream ends them. With Highland alone a pipeline that fails hangs and leaves its source
 * open. Here an async generator destroys both ends when it ends, with or without an error.
 */
import { Readable } from 'node:stream';
import _ from 'highland';

const ONE_AHEAD = { objectMode: true, highWaterMark: 1 } as const;

/** Runs a Highland composition over `input`. At most one record is pulled ahead. */
export async function* compose<I, O>(
  input: AsyncIterable<I>,
  build: (stream: Highland.Stream<I>) => Highland.Stream<O>,
): AsyncGenerator<O> {
  yield* owned([Readable.from(input, ONE_AHEAD)], ([stream]) => build(stream as Highland.Stream<I>));
}

/** The records of all inputs, in the order in which they come. */
export async function* merge<T>(inputs: ReadonlyArray<AsyncIterable<T>>): AsyncGenerator<T> {
  const sources = inputs.map((input) => Readable.from(input, ONE_AHEAD));
  yield* owned<T, T>(sources, (streams) => _(streams).merge());
}

/**
 * Runs `limit` lanes at once. Each lane takes one item after another, and the lanes' records come in the order in which they are
 * made. No lane waits for another. So a lane that must start again gets what the others hold once they are done.
 */
export async function* inLanes<I, O>(
  input: AsyncIterable<I>,
  limit: number,
  lane: (item: I) => AsyncIterable<O>,
): AsyncGenerator<O> {
  const source = input[Symbol.asyncIterator]();
  async function* run(): AsyncGenerator<O> {
    for (let next = await source.next(); !next.done; next = await source.next()) yield* lane(next.value);
  }
  try {
    yield* merge(Array.from({ length: limit }, run));
  } finally {
    await source.return?.();
  }
}

async function* owned<I, O>(
  sources: Readable[],
  build: (streams: Array<Highland.Stream<I>>) => Highland.Stream<O>,
): AsyncGenerator<O> {
  const output = build(sources.map((source) => _<I>(source))).toNodeStream(ONE_AHEAD) as Readable;
  try {
    yield* output as AsyncIterable<O>;
  } finally {
    output.destroy();
    for (const source of sources) source.destroy();
  }
}
