import { setImmediate } from 'node:timers/promises';
import { decodeFloats } from '../src/checkpoint/codec.js';
import type { TensorInfo } from '../src/checkpoint/header.js';
import { type GroupPlan, groupLabel } from '../src/conversion/groups.js';
import { DegenerateGroupError, NonFiniteWeightError } from '../src/errors.js';
import { addMoments, deviation, measureMoments, NO_MOMENTS } from '../src/factorization/moments.js';
import type { ExpertGroup, NormalisedGroup } from './records.js';

export type Sigmas = ReadonlyMap<GroupPlan, number>;

/** Attaches each group's σ: as measured before, else measured now. Throws for weights that are NaN, infinite, or all the same. */
export async function* normalise(
  groups: AsyncIterable<ExpertGroup>,
  known: Sigmas = new Map(),
): AsyncGenerator<NormalisedGroup> {
  for await (const group of groups) yield { ...group, sigma: known.get(group.group) ?? (await measureSigma(group)) };
}

async function measureSigma({ group, experts }: ExpertGroup): Promise<number> {
  const { rows, cols } = group.problem;
  const values = new Float32Array(rows * cols);
  let moments = NO_MOMENTS;
  for (const [expert, data] of experts.entries()) {
    decodeFloats(group.sourceDtype, data, values);
    const own = measureMoments(values);
    const { name, file } = group.experts[expert] as TensorInfo;
    if (own.nonFinite) throw new NonFiniteWeightError(name, file, own.nonFinite);
    moments = addMoments(moments, own);
    await setImmediate(); // tens of milliseconds an expert: let others have the thread in between
  }
  const sigma = deviation(moments);
  if (!(sigma > 0)) throw new DegenerateGroupError(groupLabel(group), moments.min);
  return sigma;
}
