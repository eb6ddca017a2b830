/** The branch of a conversion that fits a layer, repairs it with down_proj, and then goes on with the next. */
import { join } from 'node:path';
import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import { type ConversionPlan, planFactors } from '../../src/conversion/conversion-plan.js';
import { factorSettings } from '../../src/conversion/settings.js';
import { DEFAULT_ENGINE } from '../../src/engine/create-engine.js';
import { OptionError } from '../../src/errors.js';
import { nodeFileSystem } from '../../src/file-system.js';
import { STATE_SUFFIX } from '../../src/output/unfinished-run.js';
import { joinFiles } from '../../src/sources/join-files.js';
import { withThread } from '../compute/compute-thread.js';
import type { OutputRecord } from '../records.js';
import type { Progress, RunOptions } from '../run-options.js';
import { repairLayer } from '../stages/repair-layer.js';
import { type BranchContext, convert } from './convert.js';
import { openFactored } from './factored-groups.js';
import { fitCircumstances, fitExperts } from './fit-experts.js';
import { holding } from './open-calibration.js';
import type { PlannedRun } from './plan-run.js';
import { layerToRepair } from './repair-plan.js';

/**
 * Fits the missing groups of one layer after another into factor files in the run's workspace, and yields what their repair
 * makes of them. An interrupted run finds the files that are finished. At most two layers of them are on disk.
 */
export async function* fitAndRepair(
  run: PlannedRun,
  plan: ConversionPlan,
  options: RunOptions,
  { missing, states, signal }: BranchContext,
): AsyncGenerator<OutputRecord> {
  const { planned, record } = run;
  const { source, model, settings, memory } = planned;
  if (settings.maxError !== undefined)
    throw new OptionError('--max-error', 'a layer is repaired as a whole. Leave it out, or use --repair factors');
  if (!record) throw new OptionError('--repair', 'it needs a calibration record: give --calibration');
  if (!states)
    throw new OptionError(
      '--repair',
      'factors+down keeps the factors of a layer beside the result until down_proj is repaired, and this output has no folder for them. Write to a folder, or use --repair factors',
    );
  const { fileSystem: fs = nodeFileSystem } = options;
  const sourceFingerprint = await fingerprint(source);
  const held = holding(record);
  // The outer conversion goes on reading the source while the inner one ends.
  const opened = { ...source, files: { ...joinFiles(source), close: async () => {} } };
  const { onProgress } = options;
  const tell = (progress: Progress): void => {
    if (!['phase', 'bytes', 'group'].includes(progress.kind)) onProgress?.(progress);
  };
  const wanted = new Set(missing);
  const made: string[] = [];

  for (const layer of model.layers) {
    if (!missing.some((group) => group.layer === layer.layer)) continue;
    const groups = plan.groups.filter((group) => group.layer === layer.layer && !group.dense);
    const folder = join(states.folder, `layer-${layer.layer}${STATE_SUFFIX}`);
    const factors = planFactors(opened, groups);
    // Processes that fit parts of a model share the workspace, and one of them may have been taken for dead.
    await convert({
      plan: factors,
      partOf: factors,
      out: folder,
      inputs: [],
      circumstances: fitCircumstances(planned),
      experts: (context) => fitExperts({ ...run, record: held }, factors, options, context),
      record: { kind: 'fit', sourceFingerprint, settings: factorSettings(settings) },
      run: { ...options, force: false, onProgress: tell, signal },
      started: performance.now(),
    });
    const finished = await openFactored(folder, model, sourceFingerprint, options);
    const files = joinFiles({ folder: source.folder, files: opened.files }, finished.place);
    const tools = { plan, reader: files, record: await record.layer(layer.layer), missing: wanted };
    const thread = { engine: run.remote ? DEFAULT_ENGINE : settings.engine, threads: memory.threadsPerWorker };
    yield* withThread(thread, signal, (thread) =>
      repairLayer(layerToRepair(layer, finished.groups, plan, true), { ...tools, thread }),
    );
    await files.close();
    await record.release(layer.layer);
    // Weights of this layer may still be on their way to the disk. Those of the one before it are there.
    for (const before of made.splice(0)) await fs.remove(before);
    made.push(folder);
  }
}
