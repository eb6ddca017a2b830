import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { type ConversionPlan, planFactors } from '../../src/conversion/conversion-plan.js';
import type { GroupPlan } from '../../src/conversion/group-plan.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, factorSettings, repairsDown } from '../../src/conversion/settings.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { convert } from './convert.js';
import { fitAndRepair } from './fit-and-repair.js';
import { fitCircumstances, fitExperts, tellPlan } from './fit-experts.js';
import type { OutputPlace } from './open-output.js';
import { type PlannedRun, planRun } from './plan-run.js';
import { planDown } from './repair-plan.js';

/** A planned fit: the run, and the factor files that it writes. */
export interface PlannedFit extends PlannedRun {
  readonly plan: ConversionPlan;
}

/** Plans the fit of all groups. The caller closes the record. Throws as `planRun` does. */
export async function planFit(model: Source, options: CompressOptions, run: RunOptions): Promise<PlannedFit> {
  // Factor files have no checkpoint format. "hf" is used here because all families can be planned with it.
  const planned = await planRun(model, { ...options, format: 'hf' }, run, 'factor files');
  const { source, model: detected, groups, settings } = planned.planned;
  const factors = planFactors(source, groups);
  return { ...planned, plan: repairsDown(settings) ? planDown(factors, detected) : factors };
}

/** A part of a planned fit, whose other parts are fitted by other processes into the same folder at the same time. */
export interface FitPart {
  readonly groups: readonly GroupPlan[];
  /** Called before the work, if there is any; default: tells the plan, for which the machine's pace is measured. */
  readonly onStart?: () => Promise<void>;
}

/** Carries out a planned fit, or a part of it. */
export async function fitPlanned(
  fit: PlannedFit,
  folder: OutputPlace,
  run: RunOptions,
  started = performance.now(),
  part?: FitPart,
): Promise<RunResult> {
  const { plan, planned } = fit;
  const { settings, source, engine } = planned;
  return convert({
    ...(part ? { plan: planFactors(source, part.groups), partOf: plan } : { plan }),
    out: folder,
    inputs: [source.folder],
    circumstances: fitCircumstances(planned),
    onStart: part?.onStart ?? (() => tellPlan(fit, run)),
    // σ of experts that are cut into groups is that of all groups of a layer, so the stages get the plan of the whole.
    experts: (context) => (repairsDown(settings) ? fitAndRepair : fitExperts)(fit, plan, run, context),
    record: {
      kind: 'fit',
      sourceFingerprint: await fingerprint(source),
      settings: factorSettings(settings),
      engine: engineRecord(engine),
    },
    run,
    started,
  });
}

/** Fits the experts with the sizes that the options give. See `fitFactors`. */
export async function fitGroups(
  model: Source,
  folder: OutputPlace,
  options: CompressOptions,
  run: RunOptions,
  started = performance.now(),
): Promise<RunResult> {
  const fit = await planFit(model, options, run);
  return fitPlanned(fit, folder, run, started).finally(() => fit.record?.close());
}
