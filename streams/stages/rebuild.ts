/** Rebuilds dense weights from finished factors of a native checkpoint or of factor files. */
import { readMatrix, type StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import type { FactorFile } from '../../src/conversion/factor-files.js';
import { groupPlaces } from '../../src/conversion/group-places.js';
import { type GroupPlan, groupLabel, groupOf } from '../../src/conversion/group-plan.js';
import { FactorMismatchError } from '../../src/errors.js';
import type { MoeModel } from '../../src/models/family.js';
import type { ByteRange, RangeReader } from '../../src/sources/files.js';
import type { ComputeThread } from '../compute/compute-thread.js';
import { addErrors, NO_ERROR, type SquaredError } from '../compute/squared-error.js';
import type { OutputChunk } from '../records.js';

/** The byte range of each factor, by the factor's name. */
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
  const { path, metadata, tensors, method, problem, dtype } = file;
  if (metadata.sourceFingerprint !== sourceFingerprint)
    throw new FactorMismatchError(path, 'it was fitted to another checkpoint');
  const group = groupOf(model, metadata.report, {}, file);
  if (!group) throw new FactorMismatchError(path, `its shapes do not fit ${groupLabel(metadata.report)}`);
  const { shared, byExpert } = method.stores(problem);
  const rangeOf = (factor: string): ByteRange => tensors[factor] as ByteRange;
  return {
    group: { ...group, dtype },
    shared: Object.fromEntries(shared.map(({ name }) => [name, rangeOf(name)])),
    own: (expert) =>
      Object.fromEntries(
        byExpert.map(({ name }) => {
          const { start: first, end } = rangeOf(name);
          const size = (end - first) / problem.experts;
          return [name, { file: path, start: first + expert * size, end: first + (expert + 1) * size }];
        }),
      ),
    dense: group.experts,
  };
}

/** Reads factors as stored, by name. */
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
  const { method, problem, dtype, format } = group;
  const factors = { method: method.name, problem, dtype, format, shared: await readFactors(shared, reader) };
  await thread.call('load', [factors]);
}

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
    const encoding = group.forms?.[expert]?.encoding ?? ({ kind: 'float', dtype: group.dtype } as const);
    const { tensors, ...rebuilt } = await thread.call('rebuild', [expert, factors, { label, encoding }, weights]);
    error = addErrors(error, rebuilt);
    for (const { factor, tensor, offset, part } of places)
      yield { tensor, offset, data: tensors[factor] as Uint8Array, ...(part && { part }) };
  }
  return error;
}
