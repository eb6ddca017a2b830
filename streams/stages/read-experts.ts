/** Source: the experts of each group, in the order in which they lie in the shards. */
import { basename } from 'node:path';
import { readMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type GroupPlan, sourceBytes } from '../../src/conversion/group-plan.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { ByteBudget } from '../flow/byte-budget.js';
import type { TensorRecord } from '../records.js';

/** Takes a whole group's bytes from the budget before it reads the first expert. Whoever is done with the group releases them. */
export async function* readExperts(
  groups: readonly GroupPlan[],
  reader: RangeReader,
  budget: ByteBudget,
): AsyncGenerator<TensorRecord> {
  for (const group of groups) {
    const { release } = await budget.acquire(sourceBytes(group));
    const order = group.experts.map((matrix, expert) => ({ matrix, expert, ...matrix.data }));
    order.sort((a, b) => compareNames(a.file, b.file) || a.start - b.start);
    for (const { matrix, expert } of order) yield { group, expert, data: await readMatrix(reader, matrix), release };
  }
}

const compareNames = (a: string, b: string): number => (basename(a) < basename(b) ? -1 : Number(a !== b));
