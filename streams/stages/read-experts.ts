/** The source of the pipeline: it reads the experts of each group, in the order in which they are stored. */
import { basename } from 'node:path';
import { readMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type GroupPlan, sourceBytes } from '../../src/conversion/group-plan.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { ByteBudget } from '../flow/byte-budget.js';
import type { TensorRecord } from '../records.js';

/** Reads in flight. Over a network each waits for its answer; on a disk more are not faster. The group's memory is granted before. */
const READS_IN_FLIGHT = 4;

/**
 * Takes the bytes of a whole group from the budget before it reads the first expert. A later stage gives them back by
 * `release`. Throws `ReadError` and other errors of the reader.
 */
export async function* readExperts(
  groups: readonly GroupPlan[],
  reader: RangeReader,
  budget: ByteBudget,
): AsyncGenerator<TensorRecord> {
  for (const group of groups) {
    const { release } = await budget.acquire(sourceBytes(group));
    const order = group.experts.map((matrix, expert) => ({ matrix, expert, ...matrix.data }));
    order.sort((a, b) => compareNames(a.file, b.file) || a.start - b.start);
    yield* inOrder(order, async ({ matrix, expert }) => ({
      ...{ group, expert, release },
      data: await readMatrix(reader, matrix),
    }));
  }
}

/** Yields what `read` makes of each item, in order, with several reads in flight. */
async function* inOrder<T, R>(items: readonly T[], read: (item: T) => Promise<R>): AsyncGenerator<R> {
  const waiting: Array<Promise<R>> = [];
  let next = 0;
  try {
    while (next < items.length || waiting.length > 0) {
      while (next < items.length && waiting.length < READS_IN_FLIGHT) {
        const started = read(items[next++] as T);
        started.catch(() => {}); // awaiting it later throws the error
        waiting.push(started);
      }
      yield await (waiting.shift() as Promise<R>);
    }
  } finally {
    await Promise.allSettled(waiting); // all reads must have ended before the caller closes the files
  }
}

const compareNames = (a: string, b: string): number => (basename(a) < basename(b) ? -1 : Number(a !== b));
