import type { CompressOptions } from '../../src/conversion/settings.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { withAllocation } from './allocate.js';
import { fitGroups } from './fit-groups.js';
import { fitSlice } from './fit-slice.js';
import type { OutputPlace } from './open-output.js';

/**
 * Fits the experts of `model` and writes one factor file for each group into `folder`. Files of the same source and settings
 * that are already there are kept, so an interrupted fit resumes. With `run.slice` it fits some of the groups, beside other
 * processes that fit the others. Throws a `MobeError`, as `compress` does.
 */
export async function fitFactors(
  model: Source,
  folder: OutputPlace,
  options: CompressOptions = {},
  run: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  if (run.slice) return fitSlice(model, folder, run.slice, options, run);
  return withAllocation(model, folder, options, run, (allocated) => fitGroups(model, folder, allocated, run, started));
}
