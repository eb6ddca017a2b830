import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { configChanges, nativeModelling } from '../../src/conversion/config-changes.js';
import { editedSideFiles } from '../../src/conversion/quantisation-changes.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, resultSettings } from '../../src/conversion/settings.js';
import { stateFiles } from '../compute/state-file.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { fold } from '../stages/fold.js';
import { foldWithin } from '../stages/max-error.js';
import type { Sigmas } from '../stages/normalise.js';
import { convert } from './convert.js';
import { fitGroups, measureGroups } from './expert-branch.js';
import { type PlannedRun, planRun, withEstimate } from './plan.js';

/**
 * Compresses the checkpoint in `model` into `out` in one streaming pass (two reads of the experts: one checks them).
 * Throws a `MobeError`; `out` then holds nothing that looks whole, and, where the error's `kept` says so, what the same call goes on
 * from.
 */
export async function compress(
  model: string,
  out: string,
  options: CompressOptions = {},
  run: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  return compressPlanned(await planRun(model, options, run), out, run, started);
}

/** The same, once it is planned; of a part of the source perhaps. */
export async function compressPlanned(
  { planned: plan, remote }: PlannedRun,
  out: string,
  run: RunOptions = {},
  started = performance.now(),
): Promise<RunResult> {
  const { source, groups, settings, memory, engine } = plan;
  const sourceFingerprint = await fingerprint(source);
  const written = settings.format === 'mobe' ? 'factors' : 'weights';
  let sigmas: Sigmas = new Map();
  return convert({
    plan,
    out,
    inputs: [source.folder],
    circumstances: { 'experts a batch': memory.batchExperts, 'threads a fit': memory.threadsPerWorker },
    async before(reader, missing) {
      if (run.onProgress) run.onProgress({ kind: 'plan', plan: await withEstimate(plan, remote, run.peers) });
      sigmas = await measureGroups(missing, groups, reader, { ...memory, written }, run);
    },
    async *expertBranch({ reader, missing, states, onGroup, signal }) {
      const options = {
        groups: missing,
        reader,
        memory,
        settings,
        sigmas,
        written,
        stateOf: states && stateFiles(states),
        remote,
        hooks: run,
        signal,
      } as const;
      const { maxError } = settings;
      yield* fitGroups(options, (factorization) =>
        maxError === undefined
          ? fold(factorization, plan, onGroup)
          : foldWithin(maxError, factorization, plan, reader, onGroup),
      );
    },
    modelling: nativeModelling(plan, plan.model),
    edited: await editedSideFiles(plan, plan.model),
    config: configChanges(plan, plan.model, { solver: settings.solver, sourceFingerprint }),
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
