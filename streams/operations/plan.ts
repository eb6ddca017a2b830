import { estimateSeconds, type TimedPlan } from '../../src/conversion/estimate.js';
import { type CompressOptions, resolveSettings } from '../../src/conversion/settings.js';
import { OptionError } from '../../src/errors.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions } from '../run-options.js';
import {
  decideAllocation,
  expectedOptions,
  planAllocation,
  removeProbes,
  wantsAllocation,
  withRank,
} from './allocate.js';
import { areSensitivitiesKnown } from './find-sensitivities.js';
import { measurePace } from './measure-pace.js';
import { planRun, withEstimate } from './plan-run.js';
import { areProbesFinished, probeBytes, runProbes } from './probe.js';

/** Options of `plan` beside those of the run that is planned. */
export interface PlanOptions extends Pick<RunOptions, 'peers' | 'workers' | 'onProgress' | 'signal'> {
  /** Whether to run the short fits that an allocation is decided from, and so to find the predicted loss by size. */
  readonly curve?: boolean;
}

/**
 * Plans what `compress` would do with the same arguments. Reads headers, then fits a few random experts on the machine that fits, for a
 * second or two. Throws an `InputError` if the checkpoint or the options do not allow the run.
 */
export async function plan(
  model: Source,
  options: CompressOptions = {},
  { curve = false, ...run }: PlanOptions = {},
): Promise<TimedPlan> {
  if (!wantsAllocation(resolveSettings(options))) {
    if (curve) throw new OptionError('--curve', 'no allocation is wanted. Give --calibration, or --allocate error');
    const planned = await planRun(model, options, run);
    await planned.record?.close();
    return withEstimate(planned, run.peers);
  }
  const outlook = await planAllocation(model, options, run);
  const { groups, steps } = outlook.probes;
  if (curve) await runProbes(model, outlook.probes, run);
  const { calibration, sensitivity } = outlook.settings;
  const finished =
    (await areProbesFinished(outlook.probes)) &&
    (curve ||
      calibration === undefined ||
      sensitivity === undefined ||
      (await areSensitivitiesKnown(calibration, sensitivity, outlook.probes)));
  const allocation = finished ? await decideAllocation(model, outlook, run) : undefined;
  if (curve) await removeProbes(outlook.probes);
  const decided = allocation ? { ...withRank(options, outlook), allocation } : expectedOptions(options, outlook);
  const planned = await planRun(model, decided, run);
  await planned.record?.close();
  const pace = await measurePace(planned.planned, planned.remote, run.peers);
  const whole = { ...planned.planned, settings: { ...planned.planned.settings, allocation } };
  const probing = { ...whole, groups, settings: { ...whole.settings, steps }, bytesBefore: 0, bytesAfter: 0 };
  const probeSeconds = finished ? 0 : estimateSeconds(probing, pace);
  const probes = {
    fits: groups.length,
    steps,
    finished,
    estimatedSeconds: probeSeconds,
    diskBytes: probeBytes(groups),
    kept: outlook.probes.temporary === undefined,
  };
  return { ...whole, estimatedSeconds: estimateSeconds(whole, pace) + probeSeconds, probes };
}
