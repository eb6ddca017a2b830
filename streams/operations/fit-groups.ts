import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { planFactors } from '../../src/conversion/conversion-plan.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, resultSettings } from '../../src/conversion/settings.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { fitExperts, tellPlan } from './compress.js';
import { convert } from './convert.js';
import type { OutputPlace } from './open-output.js';
import { planRun } from './plan-run.js';

/** Fits the experts with the sizes that the options give. See `fitFactors`. */
export async function fitGroups(
  model: Source,
  folder: OutputPlace,
  options: CompressOptions,
  run: RunOptions,
  started = performance.now(),
): Promise<RunResult> {
  // Factor files have no checkpoint format. "hf" is used here because all families can be planned with it.
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
