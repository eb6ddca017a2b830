/** Rebuilds dense weights from finished factors of a native checkpoint or of factor files. */
import type { TensorInfo } from '../../src/checkpoint/header.js';
import type { Checkpoint } from '../../src/checkpoint/open-checkpoint.js';
import { readMatrix, type StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import type { FactorFile } from '../../src/conversion/factor-files.js';
import { groupPlaces } from '../../src/conversion/group-places.js';
import { type GroupPlan, groupLabel, groupOf, nativeTensors, weightEncoding } from '../../src/conversion/group-plan.js';
import { FactorMismatchError } from '../../src/errors.js';
import { partsOf, type StoredParts, storedFactors } from '../../src/methods/factor-storage.js';
import { ridgeFor } from '../../src/methods/mobe/ridge-for.js';
import type { MoeModel } from '../../src/models/family.js';
import type { ByteRange, RangeReader } from '../../src/sources/files.js';
import type { ComputeThread } from '../compute/compute-thread.js';
import { addErrors, NO_ERROR, type SquaredError } from '../compute/squared-error.js';
import type { LoadedFactors } from '../compute/stored-weights.js';
import type { OutputChunk } from '../records.js';

/** The byte range of each part of factors (`NamedPart.key`). */
export type FactorRanges = Readonly<Record<string, ByteRange>>;

/** A group whose factors are already stored. */
export interface FactoredGroup {
  readonly group: GroupPlan;
  readonly shared: FactorRanges;
  /** The factors of one expert, with σ folded in. */
  readonly own: (expert: number) => FactorRanges;
  /** The dense weights that were factorised, if the source is available. They serve to measure the error. */
  readonly dense?: readonly StoredMatrix[];
}

/** The group that a factor file belongs to. Throws `FactorMismatchError` if the file does not belong to this model. */
export function matchFactors(file: FactorFile, model: MoeModel, sourceFingerprint: string): FactoredGroup {
  const { path, metadata, tensors, problem, dtype, stored } = file;
  if (metadata.sourceFingerprint !== sourceFingerprint)
    throw new FactorMismatchError(path, 'it was fitted to another checkpoint');
  const group = groupOf(model, metadata.report, {}, file);
  if (!group) throw new FactorMismatchError(path, `its shapes do not fit ${groupLabel(metadata.report)}`);
  const factors = storedFactors(file);
  const [shared, byExpert] = [partsOf(factors.shared), partsOf(factors.byExpert)];
  const rangeOf = (part: string): ByteRange => tensors[part] as ByteRange;
  return {
    group: { ...group, dtype, stored },
    shared: Object.fromEntries(shared.map(({ key }) => [key, rangeOf(key)])),
    own: (expert) =>
      Object.fromEntries(
        byExpert.map(({ key }) => {
          const { start: first, end } = rangeOf(key);
          const size = (end - first) / problem.experts;
          return [key, { file: path, start: first + expert * size, end: first + (expert + 1) * size }];
        }),
      ),
    dense: group.experts,
  };
}

/** The ranges of a group's factors in a native checkpoint. */
export function nativeRanges(
  group: GroupPlan,
  { tensors }: Pick<Checkpoint, 'tensors'>,
): Pick<FactoredGroup, 'shared' | 'own'> {
  const { shared, experts } = nativeTensors(group);
  const ranges = (parts: typeof shared): FactorRanges =>
    Object.fromEntries(parts.map(({ name, part }) => [part.key, tensors.get(name) as TensorInfo]));
  return { shared: ranges(shared), own: (expert) => ranges(experts[expert] ?? []) };
}

/** Reads factors as stored, by the keys of their parts. */
export async function readFactors(ranges: FactorRanges, reader: RangeReader): Promise<Record<string, Uint8Array>> {
  const read: Record<string, Uint8Array> = {};
  for (const [factor, range] of Object.entries(ranges)) read[factor] = await reader.readRange(range);
  return read;
}

/** Loads the factors that a group's experts share into the thread. */
export async function loadFactors(
  { group, shared }: Pick<FactoredGroup, 'group' | 'shared'>,
  reader: RangeReader,
  thread: ComputeThread,
): Promise<void> {
  await thread.call('load', [asLoaded(group, await readFactors(shared, reader))]);
}

/** Shared factors as a compute thread loads them. */
export const asLoaded = (
  { method, problem, dtype, stored, format }: GroupPlan,
  shared: StoredParts,
): LoadedFactors => ({ method: method.name, problem, dtype, stored, ridge: ridgeFor(stored.own), format, shared });

/**
 * Yields the dense weights of a group, one expert at a time, and returns their squared error. The error is 0 of 0 if `dense` is
 * not given. Throws `OverflowError`.
 */
export async function* rebuildWeights(
  factored: FactoredGroup,
  plan: ConversionPlan,
  reader: RangeReader,
  thread: ComputeThread,
): AsyncGenerator<OutputChunk, SquaredError> {
  const { group, own, dense } = factored;
  await loadFactors(factored, reader, thread);
  let error = NO_ERROR;
  for (const [expert, places] of groupPlaces(group, plan).experts.entries()) {
    const factors = await readFactors(own(expert), reader);
    const target = dense?.[expert];
    const weights = target && {
      format: { ...group.format, encoding: target.encoding },
      bytes: await readMatrix(reader, target),
    };
    const label = `${groupLabel(group)}, expert ${expert}`;
    const encoding = weightEncoding(group, expert);
    const { tensors, ...rebuilt } = await thread.call('rebuild', [expert, factors, { label, encoding }, weights]);
    error = addErrors(error, rebuilt);
    for (const { factor, tensor, offset, part } of places)
      yield { tensor, offset, data: tensors[factor] as Uint8Array, ...(part && { part }) };
  }
  return error;
}
