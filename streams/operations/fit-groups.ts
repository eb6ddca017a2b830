import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { planFactors } from '../../src/conversion/conversion-plan.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, factorSettings, repairsDown } from '../../src/conversion/settings.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { convert } from './convert.js';
import { fitAndRepair } from './fit-and-repair.js';
import { fitCircumstances, fitExperts, tellPlan } from './fit-experts.js';
import type { OutputPlace } from './open-output.js';
import { planRun } from './plan-run.js';
import { planDown } from './repair-plan.js';

/** Fits the experts with the sizes that the options give. See `fitFactors`. */
export async function fitGroups(
  model: Source,
  folder: OutputPlace,
  options: CompressOptions,
  run: RunOptions,
  started = performance.now(),
): Promise<RunResult> {
  // Factor files have no checkpoint format. "hf" is used here because all families can be planned with it.
  const planned = await planRun(model, { ...options, format: 'hf' }, run, 'factor files');
  const { source, model: detected, groups, settings, engine } = planned.planned;
  const repairs = repairsDown(settings);
  const factors = planFactors(source, groups);
  const plan = repairs ? planDown(factors, detected) : factors;
  return convert({
    plan,
    out: folder,
    inputs: [source.folder],
    circumstances: fitCircumstances(planned.planned),
    onStart: () => tellPlan(planned, run),
    experts: (context) => (repairs ? fitAndRepair : fitExperts)(planned, plan, run, context),
    record: {
      kind: 'fit',
      sourceFingerprint: await fingerprint(source),
      settings: factorSettings(settings),
      engine: engineRecord(engine),
    },
    run,
    started,
  }).finally(() => planned.record?.close());
}
