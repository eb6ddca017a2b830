/** Groups that fit worse than `--max-error`: their weights are written as the source has them. */

import { type ConversionPlan, expertCopies } from '../../src/conversion/conversion-plan.js';
import type { GroupPlan } from '../../src/conversion/group-plan.js';
import type { FittedGroupReport, KeptGroupReport } from '../../src/conversion/run-report.js';
import type { RangeReader } from '../../src/sources/files.js';
import type { Factorization, OutputChunk } from '../records.js';
import { fold } from './fold.js';
import { passThrough } from './pass-through.js';

/**
 * As `fold`, for standard weights, when what would be written has at most this relative error; else the dense weights. Errors
 * are known when the last expert was rebuilt, and the first is not to be written before: so all are rebuilt twice, a
 * hundredth of what the fit took.
 */
export async function* foldWithin(
  maxError: number,
  factorization: Factorization,
  plan: Pick<ConversionPlan, 'format' | 'separate'>,
  reader: RangeReader,
  onGroup: (report: FittedGroupReport | KeptGroupReport) => void,
): AsyncGenerator<OutputChunk> {
  const started = performance.now();
  const { group } = factorization;
  let within = false;
  let keptError = Number.NaN;
  try {
    keptError = await errorOf(factorization);
    within = keptError <= maxError; // not, where it is NaN
    if (!within) yield* passThrough(expertCopies(group, plan), reader);
  } finally {
    if (!within) factorization.release();
  }
  if (within) yield* fold(factorization, plan, onGroup);
  else onGroup(keptReport(group, keptError, factorization.seconds + (performance.now() - started) / 1000));
}

/** ‖W − Ŵ‖/‖W‖ of what would be written. */
async function errorOf({ group, expert }: Factorization): Promise<number> {
  let error = 0;
  let norm = 0;
  for (let i = 0; i < group.experts.length; i++) {
    const { squaredError, squaredNorm } = await expert(i);
    error += squaredError;
    norm += squaredNorm;
  }
  return Math.sqrt(error / norm);
}

export function keptReport(
  { layer, projection, group, groups }: Pick<GroupPlan, 'layer' | 'projection' | 'group' | 'groups'>,
  keptError: number,
  seconds: number,
): KeptGroupReport {
  return { layer, projection, group, groups, seconds, keptError };
}
