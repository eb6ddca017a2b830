/** Prepares an allocation of bytes: what there is to divide, and what is expected of it before any fit. */

import { OptionError } from '../errors.js';
import { storageError } from '../methods/mobe/storage-error.js';
import { curveBases, type ErrorCurve, errorAt, partsOf } from './allocate.js';
import { allocateBytes, type BytesAllocationInput } from './allocate-bytes.js';
import type { Allocation } from './allocation.js';
import { hasMetric } from './allocation-options.js';
import type { CompressionPlan } from './compression-plan.js';
import { type BytesLimit, type BytesPart, bytesLimit, expertBytes } from './expert-bytes.js';
import { projectionKey } from './group-plan.js';
import { showColumns } from './native-factors.js';
import { dtypesToAllocate, type Settings } from './settings.js';

type Uniform = Pick<CompressionPlan, 'model' | 'groups' | 'source' | 'sizesNote' | 'settings'>;

/** The facts of an allocation of bytes that need no fits. */
export type BytesToAllocate = Omit<BytesAllocationInput, 'measure' | 'sensitivities' | 'remaining' | 'curves'>;

/**
 * Finds what an allocation of bytes divides.
 * @param uniform the run with the same number of bases everywhere, and floats
 * @param settings of the run, which limit bytes
 */
export function bytesToAllocate(
  { model, groups, source: { config }, sizesNote, settings: { rank } }: Uniform,
  settings: Settings,
): BytesToAllocate {
  const { weights, fixed, parts, ...bytes } = expertBytes(model, partsOf(groups), settings);
  const limit = bytesLimit(settings, { weights, ...bytes }) as BytesLimit;
  const inMetric = hasMetric(settings);
  if (sizesNote !== undefined && rank === undefined)
    throw new OptionError(
      limit.option,
      'experts of this model are of several sizes, for which different ranks are chosen by default. Give --rank',
    );
  return {
    ...{ weights, fixed, parts },
    limit,
    dtypesOf(part) {
      const all = dtypesToAllocate(settings, part.dtype);
      const readable = all.filter(({ shared }) => showColumns(shared, part.problem.cols, config));
      return readable.length ? readable : all; // the plan refuses them, and says why
    },
    storageError: (stored, exact) => storageError(stored, exact, inMetric),
  };
}

/** Errors of one projection of the fixture at a quarter of the usual bases, the usual number, and the most. */
const EXPECTED_ERRORS = [0.142, 0.0253, 0.0004] as const;

/** The allocation if all projections were alike, which tells of sizes before there are fits. Throws as `allocateBytes` does. */
export function expectedAllocation(input: BytesToAllocate): Allocation {
  const curve = (part: BytesPart): ErrorCurve => {
    const { least, usual, most } = curveBases(part);
    return [...new Map([least, usual, most].map((bases, i) => [bases, EXPECTED_ERRORS[i] as number]))];
  };
  const [first] = input.parts as [BytesPart];
  const error = errorAt(curve(first), curveBases(first).usual);
  return allocateBytes({
    ...input,
    measure: 'error',
    sensitivities: new Map(input.parts.map((part) => [projectionKey(part), error])),
    remaining: new Map(),
    curves: new Map(input.parts.map((part) => [part.projection, curve(part)])),
  });
}
