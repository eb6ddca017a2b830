import { setImmediate } from 'node:timers/promises';
import { allFinite, encodeFloats } from '../../src/checkpoint/codec.js';
import { decodeRows, storedBytes } from '../../src/checkpoint/encoding.js';
import type { StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import type { GroupPlan } from '../../src/conversion/group-plan.js';
import { DegenerateGroupError, NonFiniteWeightError, OverflowError } from '../../src/errors.js';
import { addMoments, deviation, type Moments, measureMoments, NO_MOMENTS } from '../../src/linalg/moments.js';
import type { Written } from '../compute/compute.js';
import type { ExpertGroup, NormalisedGroup } from '../records.js';

export type Sigmas = ReadonlyMap<GroupPlan, number>;

/** Attaches each group's σ, which `measureGroups` has found. */
export async function* normalise(groups: AsyncIterable<ExpertGroup>, sigmas: Sigmas): AsyncGenerator<NormalisedGroup> {
  for await (const group of groups) yield { ...group, sigma: sigmas.get(group.group) as number };
}

/**
 * The moments of a group's weights. Throws `NonFiniteWeightError` naming the tensor; and `OverflowError` where weights are to be
 * written and one is too large for their dtype.
 */
export async function measureGroup({ group, experts }: ExpertGroup, written?: Written): Promise<Moments> {
  const { encoding, rows, cols } = group.format;
  const { data: size } = storedBytes(encoding, rows, cols);
  const rowBytes = size / rows;
  const rowsAtOnce = Math.min(rows, Math.max(1, Math.floor(SLICE / cols)));
  const values = new Float32Array(rowsAtOnce * cols);
  let moments = NO_MOMENTS;
  for (const [expert, bytes] of experts.entries()) {
    let nonFinite = 0;
    let least = 0;
    let most = 0;
    for (let first = 0; first < rows; first += rowsAtOnce) {
      const count = Math.min(rowsAtOnce, rows - first);
      const part = values.subarray(0, count * cols);
      const data = bytes.subarray(first * rowBytes, (first + count) * rowBytes);
      decodeRows(encoding, cols, { first, count }, data, bytes.subarray(size), part);
      const own = measureMoments(part);
      nonFinite += own.nonFinite;
      least = Math.min(least, own.min);
      most = Math.max(most, own.max);
      moments = addMoments(moments, own);
      await setImmediate(); // let others have the thread in between
    }
    const { name, data } = group.experts[expert] as StoredMatrix;
    if (nonFinite) throw new NonFiniteWeightError(name, data.file, nonFinite);
    if (written === 'weights' && !allFinite(group.dtype, encodeFloats(group.dtype, Float32Array.of(least, most))))
      throw new OverflowError(name, group.dtype);
  }
  return moments;
}

/** Weights that are decoded and measured at once: some milliseconds, and about what stays in a core's cache. */
const SLICE = 2 ** 20;

/** Throws `DegenerateGroupError` where all weights are the same. */
export function sigmaOf(moments: Moments, label: string): number {
  const sigma = deviation(moments);
  if (!(sigma > 0)) throw new DegenerateGroupError(label, moments.min);
  return sigma;
}
