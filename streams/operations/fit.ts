import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { planFactors } from '../../src/conversion/conversion-plan.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, resultSettings } from '../../src/conversion/settings.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { fitExperts, tellPlan } from './compress.js';
import { convert } from './convert.js';
import type { OutputPlace } from './open-output.js';
import { planRun } from './plan.js';

/**
 * Fits the experts of `model` and writes one factor file a group into `folder`. Files that are there already from the
 * same source and settings are kept, so an interrupted fit goes on where it stopped.
 */
export async function fitFactors(
  model: Source,
  folder: OutputPlace,
  options: CompressOptions = {},
  run: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  // Factors have no checkpoint format; "hf" is the one every family can be planned for.
  const planned = await planRun(model, { ...options, format: 'hf' }, run);
  const { source, groups, settings, memory, engine } = planned.planned;
  const { format: _, shardSize: __, keepQuantized: ___, maxError: ____, ...decisive } = resultSettings(settings);
  const plan = planFactors(source, groups);
  return convert({
    plan,
    out: folder,
    inputs: [source.folder],
    circumstances: {
      device: engine.device,
      'experts a batch': memory.batchExperts,
      'threads a fit': memory.threadsPerWorker,
    },
    onStart: () => tellPlan(planned, run),
    experts: (context) => fitExperts(planned, plan, run, context),
    record: {
      kind: 'fit',
      sourceFingerprint: await fingerprint(source),
      settings: decisive,
      engine: engineRecord(engine),
    },
    run,
    started,
  });
}
