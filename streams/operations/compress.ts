import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import type { CompressionPlan } from '../../src/conversion/compression-plan.js';
import { configChanges, nativeModelling } from '../../src/conversion/config-changes.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, resultSettings } from '../../src/conversion/settings.js';
import { withRunners } from '../compute/runners.js';
import { stateFiles } from '../compute/state-file.js';
import type { Source } from '../machines/remote-files.js';
import { compressExperts } from '../pipeline.js';
import type { OutputRecord } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { type BranchContext, convert } from './convert.js';
import type { OutputPlace } from './open-output.js';
import { type PlannedRun, planRun, withEstimate } from './plan.js';

/**
 * Compresses the checkpoint in `model` into `out` in one streaming pass that reads each expert once.
 * Throws a `MobeError`; `out` then holds nothing that looks whole, and, where the error's `kept` says so, what the same call goes
 * on from.
 */
export async function compress(
  model: Source,
  out: OutputPlace,
  options: CompressOptions = {},
  run: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  return compressPlanned(await planRun(model, options, run), out, run, started);
}

/** The same, once it is planned; of a part of the source perhaps. */
export async function compressPlanned(
  planned: PlannedRun,
  out: OutputPlace,
  run: RunOptions = {},
  started = performance.now(),
): Promise<RunResult> {
  const { planned: plan } = planned;
  const { source, settings, memory, engine } = plan;
  const sourceFingerprint = await fingerprint(source);
  return convert({
    plan,
    out,
    inputs: [source.folder],
    circumstances: { 'experts a batch': memory.batchExperts, 'threads a fit': memory.threadsPerWorker },
    onStart: () => tellPlan(planned, run),
    experts: (context) => fitExperts(planned, plan, run, context),
    companions: {
      modelling: nativeModelling(plan, plan.model),
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
}

export async function tellPlan({ planned, remote }: PlannedRun, { onProgress, peers }: RunOptions): Promise<void> {
  if (onProgress) onProgress({ kind: 'plan', plan: await withEstimate(planned, remote, peers) });
}

/** Fits what is missing, on this machine's threads or on the workers that were planned with. */
export async function* fitExperts(
  { planned: { settings, memory }, remote }: PlannedRun,
  plan: Pick<CompressionPlan, 'groups' | 'format' | 'separate'>,
  run: RunOptions,
  { reader, missing, states, signal }: BranchContext,
): AsyncGenerator<OutputRecord> {
  const { onProgress, clocks, peers = {}, ownStage } = run;
  yield* withRunners({ engine: settings.engine, memory, remote, peers, signal }, (runners) =>
    compressExperts({
      groups: missing,
      plan,
      memory,
      settings,
      reader,
      runners,
      written: plan.format === 'hf' ? 'weights' : 'factors',
      stateOf: states && stateFiles(states),
      ownStage,
      clocks,
      onStep: (progress) => onProgress?.({ kind: 'step', ...progress }),
      onFold: (progress) => onProgress?.({ kind: 'fold', ...progress }),
      onLost: (worker, reason) => onProgress?.({ kind: 'lost', worker, reason }),
    }),
  );
}
