/**
 * The join stage: weights that lie scattered in a slice of a fused tensor wait here until all matrices of the slice are there.
 * gate and up of a transposed tensor alternate in small pieces, but are fitted at different times.
 */
import { floatBytes } from '../../src/checkpoint/dtype.js';
import type { RowsPart } from '../../src/conversion/group-places.js';
import { type GroupPlan, ownersOf } from '../../src/conversion/group-plan.js';
import { scatter, sliceKey } from '../../src/conversion/slices.js';
import { putRows } from '../../src/conversion/source-form.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { OutputChunk, OutputRecord } from '../records.js';
import { assembleSlice } from './decode-source.js';

/** Options of `joinSlices`. */
export interface JoinOptions {
  /** The groups whose records come. */
  readonly groups: readonly GroupPlan[];
  readonly reader: RangeReader;
}

/**
 * Passes records on. Chunks that are parts of a slice wait until those of all groups are there, then the whole slice follows. A
 * matrix of the slice that no group writes is read from the source. Throws as `passThrough` does.
 */
export async function* joinSlices(
  records: AsyncIterable<OutputRecord>,
  { groups, reader }: JoinOptions,
): AsyncGenerator<OutputRecord> {
  const owners = ownersOf(groups);
  const waiting = new Map<string, Map<string, OutputChunk>>();

  for await (const record of records) {
    if ('finished' in record || !record.part) {
      yield record;
      continue;
    }
    const { slice, matrix } = record.part;
    const key = 'rows' in record.part ? `${record.offset} ${record.tensor}` : sliceKey(slice);
    const held = waiting.get(key) ?? new Map<string, OutputChunk>();
    waiting.set(key, held.set(matrix.name, record));
    if (!slice.matrices.every(({ name }) => held.has(name) || !owners.has(name))) continue;
    waiting.delete(key);
    if ('rows' in record.part) {
      yield { tensor: record.tensor, offset: record.offset, data: await joinRows([...held.values()], reader) };
      continue;
    }
    const dtype = (owners.get(matrix.name) as GroupPlan).dtype;
    const size = floatBytes(dtype);
    const kept = slice.matrices.filter(({ name }) => !held.has(name));
    const data = await assembleSlice(slice, kept, dtype, reader);
    for (const { part, data: own } of held.values())
      if (part && !('rows' in part)) scatter(part, { first: 0, count: part.matrix.rows }, size, own, data);
    yield { tensor: record.tensor, offset: record.offset, data };
  }
}

/** A range in which the rows of these chunks alternate. Rows of other matrices are those of the source. */
async function joinRows(chunks: readonly OutputChunk[], reader: RangeReader): Promise<Uint8Array> {
  const parts = chunks.map(({ part }) => part as RowsPart);
  const [{ range, slice }] = parts as [RowsPart];
  const whole = parts.length === slice.matrices.length;
  const data = whole ? new Uint8Array(range.bytes) : await reader.readRange(range.source);
  chunks.forEach(({ data: rows }, i) => {
    putRows((parts[i] as RowsPart).rows, rows, data);
  });
  return data;
}
