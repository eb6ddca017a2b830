/** The fold stage: a fitted group becomes chunks of output tensors. */
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import { groupPlaces } from '../../src/conversion/group-places.js';
import { groupKey } from '../../src/conversion/group-plan.js';
import type { FittedGroupReport, KeptGroupReport } from '../../src/conversion/run-report.js';
import { addErrors, NO_ERROR, relativeError } from '../compute/squared-error.js';
import type { FittedGroup, OutputRecord } from '../records.js';

/** Yields a fitted group as chunks of output tensors, then its report. Always releases the group, even after an error. */
export async function* fold(
  fitted: FittedGroup,
  plan: Pick<ConversionPlan, 'format' | 'separate'>,
): AsyncGenerator<OutputRecord> {
  const { group, sigma, steps, losses, keptError, shared, metric } = fitted;
  const { rows, cols } = group.problem;
  const key = groupKey(group);
  const started = performance.now();
  let error = NO_ERROR;
  let inMetric = NO_ERROR;
  try {
    const places = groupPlaces(group, plan);
    for (const { factor, tensor, offset } of places.shared)
      yield { tensor, offset, data: shared[factor] as Uint8Array };
    for await (const { expert, tensors, ...own } of fitted.experts) {
      error = addErrors(error, own);
      if (own.metric) inMetric = addErrors(inMetric, own.metric);
      for (const { factor, tensor, offset, part } of places.experts[expert] ?? [])
        yield { tensor, offset, data: tensors[factor] as Uint8Array, ...(part && { part }) };
    }
  } finally {
    fitted.release();
  }
  const seconds = fitted.seconds + (performance.now() - started) / 1000;
  if (keptError !== undefined) yield { finished: { ...key, seconds, keptError } satisfies KeptGroupReport };
  else
    yield {
      finished: {
        ...key,
        relativeError: relativeError(error),
        mse: error.squaredError / (group.problem.experts * rows * cols),
        sigma,
        steps,
        ...(metric && { metric: { relativeError: relativeError(inMetric), ...metric } }),
        ...(losses && { losses }),
        seconds,
      } satisfies FittedGroupReport,
    };
}
