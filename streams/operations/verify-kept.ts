/** Compares the weights of the source that lie in the same slices as rebuilt ones. */
import { floatBytes } from '../../src/checkpoint/dtype.js';
import type { TensorInfo } from '../../src/checkpoint/header.js';
import type { Checkpoint } from '../../src/checkpoint/open-checkpoint.js';
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import { type Place, type RowsPart, weightPlaces } from '../../src/conversion/group-places.js';
import type { GroupPlan } from '../../src/conversion/group-plan.js';
import { gather, sliceKey } from '../../src/conversion/slices.js';
import { putRows, takeRows } from '../../src/conversion/source-form.js';
import { InterruptedError } from '../../src/errors.js';
import type { ByteRange } from '../../src/sources/files.js';
import { encodedMatrix } from '../stages/decode-source.js';

/** The bytes of a place in a result. */
export function rangeIn({ tensors }: Checkpoint, { tensor, offset, bytes }: Omit<Place, 'factor'>): ByteRange {
  const { file, start } = tensors.get(tensor) as TensorInfo;
  return { file, start: start + offset, end: start + offset + bytes };
}

/**
 * Compares the matrices that share slices with a group's but are not factorised: they are the source's weights in the group's
 * dtype. Returns the bytes compared.
 * @param factorised the groups that were compressed
 * @param sound the tensors that have the size that they should have
 */
export async function compareKept(
  plan: ConversionPlan,
  factorised: readonly GroupPlan[],
  result: Checkpoint,
  sound: ReadonlySet<string>,
  problems: string[],
  signal?: AbortSignal,
): Promise<number> {
  const rebuilt = new Set(factorised.flatMap(({ experts }) => experts.map(({ name }) => name)));
  const done = new Set<string>();
  const differing = new Set<string>();
  let bytes = 0;
  for (const group of plan.groups) {
    const { dtype } = group;
    for (const place of weightPlaces(group, plan).flat()) {
      const { part } = place;
      if (part && 'rows' in part) {
        const key = `${place.offset} ${place.tensor}`;
        if (done.has(key) || !sound.has(place.tensor)) continue;
        done.add(key);
        if (signal?.aborted) throw new InterruptedError();
        bytes += await compareRows(place, part, rebuilt, plan, result, problems);
        continue;
      }
      const { slice } = part ?? {};
      if (!slice || done.has(sliceKey(slice)) || !sound.has(slice.tensor)) continue;
      done.add(sliceKey(slice));
      if (signal?.aborted) throw new InterruptedError();
      const kept = slice.matrices.filter(({ name }) => !rebuilt.has(name));
      const written = kept.length ? await result.files.readRange(rangeIn(result, place)) : new Uint8Array(0);
      for (const matrix of kept) {
        const expected = await encodedMatrix(matrix, dtype, plan.source.files);
        bytes += expected.byteLength;
        if (Buffer.compare(gather({ slice, matrix }, floatBytes(dtype), written), expected) === 0) continue;
        if (differing.has(slice.tensor)) continue;
        differing.add(slice.tensor);
        problems.push(
          `tensor "${slice.tensor}" in ${result.tensors.get(slice.tensor)?.file} differs from the source in ${matrix.name}`,
        );
      }
    }
  }
  return bytes;
}

/** Compares the rows of a range that belong to none of the rebuilt matrices with the source's. Returns the bytes compared. */
async function compareRows(
  place: Place,
  { range, slice }: RowsPart,
  rebuilt: ReadonlySet<string>,
  { groups, source }: ConversionPlan,
  result: Checkpoint,
  problems: string[],
): Promise<number> {
  const members = new Set(slice.matrices.map(({ name }) => name));
  if (slice.matrices.every(({ name }) => rebuilt.has(name))) return 0;
  const written = await result.files.readRange(rangeIn(result, place));
  const expected = await source.files.readRange(range.source);
  // Rows of rebuilt matrices are not compared here.
  for (const { experts, forms = [] } of groups)
    experts.forEach(({ name }, expert) => {
      if (!members.has(name) || !rebuilt.has(name)) return;
      const form = forms[expert];
      for (const own of form ? [form.data, form.scales] : [])
        if (own?.rows && own.tensor === range.tensor && own.offset === range.offset)
          putRows(own.rows, takeRows(own.rows, written), expected);
    });
  if (Buffer.compare(written, expected) !== 0)
    problems.push(
      `tensor "${place.tensor}" in ${result.tensors.get(place.tensor)?.file} differs from the source in rows that were not converted`,
    );
  return expected.byteLength;
}
