import { type ConversionPlan, type ExpertPlace, expertPlaces } from '../../src/conversion/conversion-plan.js';
import type { FittedGroupReport } from '../../src/conversion/run-report.js';
import { isNative } from '../../src/conversion/settings.js';
import type { Factorization, OutputChunk } from '../records.js';

/** A fitted group as the tensors of a checkpoint, σ folded into A. */
export async function* fold(
  factorization: Factorization,
  plan: Pick<ConversionPlan, 'format' | 'separate'>,
  onGroup: (report: FittedGroupReport) => void,
): AsyncGenerator<OutputChunk> {
  const { group, bases, coefficients } = factorization;
  const { names } = group;
  const places = expertPlaces(group, plan);
  if (isNative(plan)) {
    yield { tensor: names.shared.B as string, offset: 0, data: bases };
    yield { tensor: names.shared.alpha as string, offset: 0, data: coefficients };
  }
  onGroup(yield* eachExpert(factorization, (expert, data) => ({ ...(places[expert] as ExpertPlace), data })));
}

/** Hands every expert's bytes to `write`, then returns the error of them all. */
export async function foldExperts(
  factorization: Factorization,
  write: (expert: number, data: Uint8Array) => Promise<void>,
): Promise<FittedGroupReport> {
  const written = eachExpert(factorization, write);
  for (;;) {
    const { value, done } = await written.next();
    if (done) return value;
  }
}

/** What `take` makes of each expert's bytes, awaited; then the error of them all. However it ends, the group is released. */
async function* eachExpert<T>(
  factorization: Factorization,
  take: (expert: number, data: Uint8Array) => T,
): AsyncGenerator<Awaited<T>, FittedGroupReport> {
  const { group, sigma, steps, losses, seconds } = factorization;
  const { experts: n, rows, cols } = group.problem;
  const started = performance.now();
  let error = 0;
  let norm = 0;
  try {
    for (let expert = 0; expert < n; expert++) {
      const { data, squaredError, squaredNorm } = await factorization.expert(expert);
      error += squaredError;
      norm += squaredNorm;
      yield await take(expert, data);
    }
  } finally {
    factorization.release();
  }
  return {
    layer: group.layer,
    projection: group.projection,
    group: group.group,
    groups: group.groups,
    relativeError: Math.sqrt(error / norm),
    mse: error / (n * rows * cols),
    sigma,
    steps,
    ...(losses && { losses }),
    seconds: seconds + (performance.now() - started) / 1000,
  };
}
