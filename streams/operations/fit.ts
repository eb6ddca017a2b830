import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { engineRecord } from '../../src/conversion/run-report.js';
import { type CompressOptions, resultSettings } from '../../src/conversion/settings.js';
import { stateFiles } from '../compute/state-file.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { fitGroups, measureGroups } from './expert-branch.js';
import { fillFactorFolder } from './factor-folder.js';
import type { OutputPlace } from './open-output.js';
import { planRun, withEstimate } from './plan.js';

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
  const { planned: plan, remote } = await planRun(model, { ...options, format: 'hf' }, run);
  const { source, groups, settings, memory, engine } = plan;
  const { format: _, shardSize: __, keepQuantized: ___, maxError: ____, ...decisive } = resultSettings(settings);
  return fillFactorFolder({
    folder,
    inputs: [source.folder],
    groups,
    context: { sourceFingerprint: await fingerprint(source), settings: decisive },
    circumstances: {
      device: engine.device,
      'experts a batch': memory.batchExperts,
      'threads a fit': memory.threadsPerWorker,
    },
    plan,
    engine: engineRecord(engine),
    async produce(missing, reader, signal, states, write) {
      if (run.onProgress) run.onProgress({ kind: 'plan', plan: await withEstimate(plan, remote, run.peers) });
      const sigmas = await measureGroups(missing, groups, reader, memory, run);
      const stateOf = states && stateFiles(states);
      const options = {
        groups: missing,
        reader,
        memory,
        settings,
        sigmas,
        stateOf,
        remote,
        hooks: run,
        signal,
      } as const;
      return fitGroups({ ...options, written: 'factors' }, write);
    },
    run,
    started,
  });
}
