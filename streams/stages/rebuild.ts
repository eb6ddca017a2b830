/** The branch of the dataflow that starts from finished factors: a native checkpoint's, or those in factor files. */

import { readMatrix, type StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type ConversionPlan, expertPlaces } from '../../src/conversion/conversion-plan.js';
import { type GroupPlan, groupLabel } from '../../src/conversion/group-plan.js';
import type { Problem } from '../../src/methods/mobe/problem.js';
import type { ByteRange, RangeReader } from '../../src/sources/files.js';
import type { SquaredError } from '../compute/compute.js';
import type { ComputeWorker } from '../compute/worker-pool.js';
import type { OutputChunk } from '../records.js';

/** A group whose factors exist. */
export interface FactoredGroup {
  readonly group: GroupPlan;
  readonly bases: ByteRange;
  readonly coefficients: ByteRange;
  /** A·σ of one expert. */
  readonly factor: (expert: number) => ByteRange;
  /** The dense weights they stand for, where the source is at hand. */
  readonly dense?: readonly StoredMatrix[];
}

export async function loadFactors(
  { group, bases, coefficients }: Pick<FactoredGroup, 'group' | 'bases' | 'coefficients'>,
  reader: RangeReader,
  worker: ComputeWorker,
): Promise<void> {
  const { problem, dtype, format } = group;
  const { transposed } = format;
  await worker.call('load', [
    {
      problem: problem as Problem,
      transposed,
      dtype,
      bases: await reader.readRange(bases),
      coefficients: await reader.readRange(coefficients),
    },
  ]);
}

/** The dense weights of a group, one expert at a time; returns their error where `dense` is given. */
export async function* rebuildWeights(
  factored: FactoredGroup,
  plan: ConversionPlan,
  reader: RangeReader,
  worker: ComputeWorker,
): AsyncGenerator<OutputChunk, SquaredError> {
  const { group, factor, dense } = factored;
  await loadFactors(factored, reader, worker);
  let error = 0;
  let norm = 0;
  for (const [expert, place] of expertPlaces(group, plan).entries()) {
    const A = await reader.readRange(factor(expert));
    const target = dense?.[expert];
    const weights = target && { format: group.format, bytes: await readMatrix(reader, target) };
    const { data, squaredError, squaredNorm } = await worker.call('rebuild', [
      expert,
      A,
      `${groupLabel(group)}, expert ${expert}`,
      weights,
    ]);
    error += squaredError;
    norm += squaredNorm;
    yield { ...place, data };
  }
  return { squaredError: error, squaredNorm: norm };
}
