/// <reference types="highland" preserve="true" />
/**
 * Highland composes, node:stream owns the lifecycle. Highland alone leaves a failing pipeline hanging and its source
 * open; inside an async generator every end, good or bad, destroys both ends.
 */
import { Readable } from 'node:stream';
import _ from 'highland';

const ONE_AHEAD = { objectMode: true, highWaterMark: 1 } as const;

/** Runs a Highland composition over `input`, which is pulled at most one record ahead. */
export async function* compose<I, O>(
  input: AsyncIterable<I>,
  build: (stream: Highland.Stream<I>) => Highland.Stream<O>,
): AsyncGenerator<O> {
  yield* owned([Readable.from(input, ONE_AHEAD)], ([stream]) => build(stream as Highland.Stream<I>));
}

/** The records of all inputs, as they come. */
export async function* merge<T>(inputs: ReadonlyArray<AsyncIterable<T>>): AsyncGenerator<T> {
  const sources = inputs.map((input) => Readable.from(input, ONE_AHEAD));
  yield* owned<T, T>(sources, (streams) => _(streams).merge());
}

/**
 * Runs a lane for each input, at most `limit` side by side; what they yield comes as it comes. No lane waits for another, so
 * one that must begin again can have what the others hold, once they are done.
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
