/** The branch of a conversion that fits the groups, on threads of this machine or on workers. */
import { hiddenActivation } from '../../src/calibration/hidden-activation.js';
import type { CompressionPlan } from '../../src/conversion/compression-plan.js';
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import { holdsWeights } from '../../src/conversion/settings.js';
import { DEFAULT_ENGINE } from '../../src/engine/create-engine.js';
import { PeerError } from '../../src/errors.js';
import { withThread } from '../compute/compute-thread.js';
import { withRunners } from '../compute/runners.js';
import { stateFiles } from '../compute/state-file.js';
import { compressExperts, type ExpertsOptions } from '../pipeline.js';
import type { OutputRecord } from '../records.js';
import type { RunOptions } from '../run-options.js';
import type { BranchContext } from './convert.js';
import { type PlannedRun, withEstimate } from './plan-run.js';

/** Reports the plan with its estimated duration, if anybody listens. */
export async function tellPlan(planned: PlannedRun, { onProgress, peers }: RunOptions): Promise<void> {
  if (!onProgress) return;
  const plan = await withEstimate(planned, peers).catch((error) => {
    // The run deals with lost workers itself.
    if (error instanceof PeerError) return { ...planned.planned, estimatedSeconds: Number.NaN };
    throw error;
  });
  onProgress({ kind: 'plan', plan });
}

/** The facts about a plan that decide the bits of its fits, beside the settings and the device. */
export const fitCircumstances = ({ memory }: Pick<CompressionPlan, 'memory'>) => ({
  'experts a batch': memory.batchExperts,
  'threads a fit': memory.threadsPerWorker,
});

/** Fits the missing groups, on threads of this machine or on the planned workers. */
export async function* fitExperts(
  { planned, remote, record }: PlannedRun,
  plan: Pick<ConversionPlan, 'groups' | 'format' | 'separate'>,
  run: RunOptions,
  { reader, missing, states, signal }: BranchContext,
): AsyncGenerator<OutputRecord> {
  const { onProgress, clocks, peers = {}, ownStage } = run;
  const { settings, memory } = planned;
  // A record that is made while it is used has its layers in order.
  const groups = run.record ? missing.toSorted((a, b) => a.layer - b.layer) : missing;
  const fits = (weighing?: ExpertsOptions['weighing']) =>
    withRunners({ engine: settings.engine, memory, remote, peers, signal }, (runners) =>
      compressExperts({
        weighing,
        groups,
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
