import { hiddenActivation } from '../../src/calibration/hidden-activation.js';
import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import type { CompressionPlan } from '../../src/conversion/compression-plan.js';
import { configChanges, nativeModelling } from '../../src/conversion/config-changes.js';
import { editedSideFiles } from '../../src/conversion/quantisation-changes.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, holdsWeights, resultSettings } from '../../src/conversion/settings.js';
import { DEFAULT_ENGINE } from '../../src/engine/create-engine.js';
import { withThread } from '../compute/compute-thread.js';
import { withRunners } from '../compute/runners.js';
import { stateFiles } from '../compute/state-file.js';
import type { Source } from '../machines/remote-files.js';
import { compressExperts, type ExpertsOptions } from '../pipeline.js';
import type { OutputRecord } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { withAllocation } from './allocate.js';
import { type BranchContext, type Conversion, convert } from './convert.js';
import type { OutputPlace } from './open-output.js';
import { type PlannedRun, planRun, withEstimate } from './plan-run.js';

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
  return withAllocation(model, out, options, run, async (allocated) =>
    compressPlanned(await planRun(model, allocated, run), out, run, started),
  );
}

/** Compresses as planned. The plan may cover only a part of the source. */
export async function compressPlanned(
  planned: PlannedRun,
  out: OutputPlace,
  run: RunOptions = {},
  started = performance.now(),
): Promise<RunResult> {
  const { planned: plan } = planned;
  const branch = {
    onStart: () => tellPlan(planned, run),
    experts: (context: BranchContext) => fitExperts(planned, plan, run, context),
  };
  return compressWith(plan, out, branch, run, started);
}

/**
 * Carries out a plan with a branch of one's own for the experts. Everything else is as in `compress`: what is not factorised is
 * copied, the small files are written, the output is committed or abandoned, and an interrupted run goes on.
 */
export async function compressWith(
  plan: CompressionPlan,
  out: OutputPlace,
  branch: Pick<Conversion, 'experts' | 'onStart'>,
  run: RunOptions = {},
  started = performance.now(),
): Promise<RunResult> {
  const { source, settings, memory, engine } = plan;
  const sourceFingerprint = await fingerprint(source);
  const result = await convert({
    plan,
    out,
    inputs: [source.folder],
    circumstances: { 'experts a batch': memory.batchExperts, 'threads a fit': memory.threadsPerWorker },
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

/** Reports the plan with its estimated duration, if anybody listens. */
export async function tellPlan(planned: PlannedRun, { onProgress, peers }: RunOptions): Promise<void> {
  if (onProgress) onProgress({ kind: 'plan', plan: await withEstimate(planned, peers) });
}

/** Fits the missing groups, on threads of this machine or on the planned workers. */
export async function* fitExperts(
  { planned, remote, record }: PlannedRun,
  plan: Pick<CompressionPlan, 'groups' | 'format' | 'separate'>,
  run: RunOptions,
  { reader, missing, states, signal }: BranchContext,
): AsyncGenerator<OutputRecord> {
  const { onProgress, clocks, peers = {}, ownStage } = run;
  const { settings, memory } = planned;
  const fits = (weighing?: ExpertsOptions['weighing']) =>
    withRunners({ engine: settings.engine, memory, remote, peers, signal }, (runners) =>
      compressExperts({
        weighing,
        groups: missing,
        plan,
        memory,
        settings,
        reader,
        runners,
        written: holdsWeights(plan) ? 'weights' : 'factors',
        stateOf: states && stateFiles(states),
        ownStage,
        clocks,
        onStep: (progress) => onProgress?.({ kind: 'step', ...progress }),
        onFold: (progress) => onProgress?.({ kind: 'fold', ...progress }),
        onLost: (worker, reason) => onProgress?.({ kind: 'lost', worker, reason }),
      }),
    );
  const metric = settings.weighing?.metric;
  if (!record || !metric) yield* fits();
  else {
    const { layers } = planned.model;
    const activation = hiddenActivation(planned.source);
    const { seed } = settings;
    // Without a graphics device of its own, this machine measures on its CPU for those that fit.
    const thread = { engine: remote ? DEFAULT_ENGINE : settings.engine, threads: memory.threadsPerWorker };
    try {
      yield* withThread(thread, signal, (thread) => fits({ record, metric, layers, activation, seed, thread }));
    } finally {
      await record.close();
    }
  }
}
