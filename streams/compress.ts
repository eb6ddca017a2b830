import { fingerprint } from '../src/checkpoint/open-checkpoint.js';
import { configChanges, nativeModelling } from '../src/conversion/config-changes.js';
import { engineRecord } from '../src/conversion/report.js';
import { type CompressOptions, resultSettings } from '../src/conversion/settings.js';
import { convert } from './convert.js';
import { fitGroups, measureGroups } from './expert-branch.js';
import { fold } from './fold.js';
import type { Sigmas } from './normalise.js';
import { type PlannedRun, planRun, withEstimate } from './plan.js';
import type { RunOptions, RunResult } from './progress.js';

/**
 * Compresses the checkpoint in `model` into `out` in one streaming pass (two reads of the experts: one checks them).
 * Throws a `MobeError`; nothing is then left in `out` that was not there before.
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
  let sigmas: Sigmas = new Map();
  return convert({
    plan,
    out,
    inputs: [source.folder],
    async before(reader) {
      if (run.onProgress) run.onProgress({ kind: 'plan', plan: await withEstimate(plan, remote, run.peers) });
      sigmas = await measureGroups(groups, groups, reader, memory, run);
    },
    async *expertBranch({ reader, onGroup, signal }) {
      const written = settings.format === 'mobe' ? 'factors' : 'weights';
      const options = { groups, reader, memory, settings, sigmas, written, remote, hooks: run, signal } as const;
      yield* fitGroups(options, (factorization) => fold(factorization, plan, onGroup));
    },
    modelling: nativeModelling(plan, plan.model),
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
