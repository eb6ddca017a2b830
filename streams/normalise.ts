import { setImmediate } from 'node:timers/promises';
import { allFinite, encodeFloats } from '../src/checkpoint/codec.js';
import { decodeMatrix, type StoredMatrix } from '../src/checkpoint/stored-matrix.js';
import { type GroupPlan, groupLabel } from '../src/conversion/groups.js';
import { DegenerateGroupError, NonFiniteWeightError, OverflowError } from '../src/errors.js';
import { addMoments, deviation, type Moments, measureMoments, NO_MOMENTS } from '../src/factorization/moments.js';
import type { Written } from './compute.js';
import type { ExpertGroup, NormalisedGroup } from './records.js';

export type Sigmas = ReadonlyMap<GroupPlan, number>;

/** Attaches each group's σ: as measured before, else that of the group alone. Throws for weights that are NaN, infinite, or all the same. */
export async function* normalise(
  groups: AsyncIterable<ExpertGroup>,
  known: Sigmas = new Map(),
): AsyncGenerator<NormalisedGroup> {
  for await (const group of groups) {
    const sigma = known.get(group.group) ?? sigmaOf(await measureGroup(group), groupLabel(group.group));
    yield { ...group, sigma };
  }
}

/**
 * The moments of a group's weights. Throws `NonFiniteWeightError` naming the tensor; and `OverflowError` where weights are to be
 * written and one is too large for their dtype.
 */
export async function measureGroup({ group, experts }: ExpertGroup, written?: Written): Promise<Moments> {
  const format = { ...group.format, transposed: false };
  const values = new Float32Array(format.rows * format.cols);
  let moments = NO_MOMENTS;
  for (const [expert, bytes] of experts.entries()) {
    decodeMatrix(format, bytes, values);
    const own = measureMoments(values);
    const { name, data } = group.experts[expert] as StoredMatrix;
    if (own.nonFinite) throw new NonFiniteWeightError(name, data.file, own.nonFinite);
    if (written === 'weights' && !allFinite(group.dtype, encodeFloats(group.dtype, Float32Array.of(own.min, own.max))))
      throw new OverflowError(name, group.dtype);
    moments = addMoments(moments, own);
    await setImmediate(); // tens of milliseconds an expert: let others have the thread in between
  }
  return moments;
}

/** Throws `DegenerateGroupError` where all weights are the same. */
export function sigmaOf(moments: Moments, label: string): number {
  const sigma = deviation(moments);
  if (!(sigma > 0)) throw new DegenerateGroupError(label, moments.min);
  return sigma;
}
