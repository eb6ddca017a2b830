import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { checkSize, type SizedPlan } from '../../src/conversion/check-size.js';
import type { CompressionPlan } from '../../src/conversion/compression-plan.js';
import { configChanges, nativeModelling } from '../../src/conversion/config-changes.js';
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import { editedSideFiles } from '../../src/conversion/quantisation-changes.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, repairsDown, resultSettings } from '../../src/conversion/settings.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { withAllocation } from './allocate.js';
import { type Conversion, convert } from './convert.js';
import { fitAndRepair } from './fit-and-repair.js';
import { fitCircumstances, fitExperts, tellPlan } from './fit-experts.js';
import { LayerRelease } from './open-calibration.js';
import type { OutputPlace } from './open-output.js';
import { type PlannedRun, planRun } from './plan-run.js';
import { planDown } from './repair-plan.js';

/**
 * Compresses the checkpoint `model` into `out`. Each expert is read once, or twice with `groups` if memory is short (the plan's
 * `holdParts`). Throws a `MobeError`. After an error, `out` holds nothing that looks like a complete result. If the error's
 * `kept` is set, finished work is there and the same call resumes from it.
 */
export async function compress(
  model: Source,
  out: OutputPlace,
  options: CompressOptions = {},
  run: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  return withAllocation(
    model,
    out,
    options,
    run,
    async (allocated) => compressPlanned(await planRun(model, allocated, run), out, run, started),
    (uniform) => checkAllowed(uniform, run),
  );
}

/** Throws `LargerOutputError` for a larger result that the caller does not allow. */
export function checkAllowed(plan: SizedPlan, { allowLarger }: RunOptions): void {
  if (!allowLarger) checkSize(plan);
}

/** Compresses as planned. The plan may cover only a part of the source. */
export async function compressPlanned(
  planned: PlannedRun,
  out: OutputPlace,
  run: RunOptions = {},
  started = performance.now(),
): Promise<RunResult> {
  const { planned: plan } = planned;
  checkAllowed(plan, run);
  const repairs = repairsDown(plan.settings);
  const written = repairs ? planDown(plan, plan.model) : plan;
  const layers = new LayerRelease(run.record);
  const branch: CompressBranch = {
    written,
    onStart: () => tellPlan(planned, run),
    experts(context) {
      layers.expect(context.missing);
      return (repairs ? fitAndRepair : fitExperts)(planned, written, run, context);
    },
    onFinished: (group) => layers.finish(group),
  };
  return compressWith(plan, out, branch, run, started).finally(() => planned.record?.close());
}

/** A branch of `compressWith`. */
export interface CompressBranch extends Pick<Conversion, 'experts' | 'onStart' | 'onFinished'> {
  /** The plan with the groups of dense weights that the branch computes too. */
  readonly written?: ConversionPlan;
}

/**
 * Carries out a plan with a branch of one's own for the experts. Everything else is as in `compress`: what is not factorised is
 * copied, the small files are written, the output is committed or abandoned, and an interrupted run goes on.
 */
export async function compressWith(
  plan: CompressionPlan,
  out: OutputPlace,
  { written = plan, ...branch }: CompressBranch,
  run: RunOptions = {},
  started = performance.now(),
): Promise<RunResult> {
  const { source, settings, engine } = plan;
  const sourceFingerprint = await fingerprint(source);
  const result = await convert({
    plan: written,
    out,
    inputs: [source.folder],
    circumstances: fitCircumstances(plan),
    ...branch,
    companions: {
      modelling: nativeModelling(plan, plan.model),
      edited: await editedSideFiles(plan, plan.model),
      config: configChanges(plan, plan.model, { solver: settings.solver, sourceFingerprint }),
    },
    record: {
      kind: 'compress',
      sourceFingerprint,
      engine: engineRecord(engine),
      settings: resultSettings(settings),
    },
    run,
    started,
  });
  return { ...result, notes: [...result.notes, ...plan.model.notes] };
}
