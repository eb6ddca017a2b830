/** Writes groups whose factors are in factor files: as standard weights that are rebuilt, or as native factors that are copied. */
import type { ConversionPlan, Copy } from '../../src/conversion/conversion-plan.js';
import type { FactorFile } from '../../src/conversion/factor-files.js';
import { groupPlaces, type Place } from '../../src/conversion/group-places.js';
import { type GroupKey, groupKey } from '../../src/conversion/group-plan.js';
import type { FittedGroupReport, KeptGroupReport } from '../../src/conversion/run-report.js';
import type { ByteRange, RangeReader } from '../../src/sources/files.js';
import type { ComputeThread } from '../compute/compute-thread.js';
import { relativeError } from '../compute/squared-error.js';
import type { OutputRecord } from '../records.js';
import { keptWeights, passThrough } from './pass-through.js';
import { type FactoredGroup, type FactorRanges, rebuildWeights } from './rebuild.js';

/** A group of the plan and its factor file. */
export type GroupAndFile = readonly [FactoredGroup, FactorFile];

/** The report of the fit, without its duration. */
const reportOf = ({ metadata }: FactorFile): FittedGroupReport => ({ ...metadata.report, seconds: 0 });

export const keptReport = (group: GroupKey, keptError: number, seconds: number): KeptGroupReport => ({
  ...groupKey(group),
  seconds,
  keptError,
});

/**
 * Yields the weights of groups. The source's weights are kept where the error of rebuilt ones is above `maxError`.
 */
export async function* rebuildAll(
  plan: ConversionPlan,
  factored: readonly GroupAndFile[],
  reader: RangeReader,
  thread: ComputeThread,
  maxError: number | undefined,
): AsyncGenerator<OutputRecord> {
  for (const [it, file] of factored) {
    const { experts, rows, cols } = it.group.problem;
    const started = performance.now();
    const seconds = (): number => (performance.now() - started) / 1000;
    if (maxError !== undefined) {
      const error = await rebuildError(it, plan, reader, thread);
      if (!(error <= maxError)) {
        yield* keptWeights(it.group, plan, reader);
        yield { finished: keptReport(it.group, error, seconds()) };
        continue;
      }
    }
    const error = yield* rebuildWeights(it, plan, reader, thread);
    const report: FittedGroupReport = {
      ...reportOf(file),
      relativeError: relativeError(error),
      mse: error.squaredError / (experts * rows * cols),
      seconds: seconds(),
    };
    yield { finished: report };
  }
}

/** The error of the weights after rounding. `compress` compares the same error with `maxError`. */
async function rebuildError(...rebuilt: Parameters<typeof rebuildWeights>): Promise<number> {
  const weights = rebuildWeights(...rebuilt);
  for (;;) {
    const { value, done } = await weights.next();
    if (done) return relativeError(value);
  }
}

/** Copies the factors unchanged, under their native names. */
export async function* copyAll(
  plan: ConversionPlan,
  factored: readonly GroupAndFile[],
  reader: RangeReader,
): AsyncGenerator<OutputRecord> {
  for (const [{ group, shared, own }, file] of factored) {
    const places = groupPlaces(group, plan);
    const copy = (ranges: FactorRanges, { factor, tensor, offset }: Place): Copy => ({
      target: tensor,
      offset,
      source: ranges[factor] as ByteRange,
    });
    const copies = [
      ...places.shared.map((place) => copy(shared, place)),
      ...places.experts.flatMap((all, expert) => all.map((place) => copy(own(expert), place))),
    ];
    yield* passThrough(copies, reader);
    yield { finished: reportOf(file) };
  }
}
