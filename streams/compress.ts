import { fingerprint } from '../src/checkpoint/open-checkpoint.js';
import { checkOutside } from '../src/checkpoint/output-folder.js';
import { TensorReader } from '../src/checkpoint/tensor-reader.js';
import { compressedConfig, planCompression } from '../src/conversion/compression.js';
import { examineOutput } from '../src/conversion/existing-output.js';
import type { StoredReport } from '../src/conversion/report.js';
import { type CompressOptions, resultSettings } from '../src/conversion/settings.js';
import { convert } from './convert.js';
import { fitGroups, measureGroups } from './expert-branch.js';
import { fold } from './fold.js';
import { withEstimate } from './plan.js';
import type { RunHooks } from './progress.js';

export interface RunOptions extends RunHooks {
  /** Replace what an earlier run left in the output folder. */
  readonly force?: boolean;
}

export interface RunResult extends StoredReport {
  /** The very result was there already; nothing was done. */
  readonly already: boolean;
}

/**
 * Compresses the checkpoint in `model` into `out` in one streaming pass (two reads of the experts: one checks them).
 * Throws a `MobeError`; nothing is then left in `out` that was not there before.
 */
export async function compress(
  model: string,
  out: string,
  options: CompressOptions = {},
  { force = false, ...hooks }: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  const plan = await planCompression(model, options);
  const { source, groups, settings, memory } = plan;
  await checkOutside(out, [source.folder]);
  const record = {
    kind: 'compress',
    sourceFingerprint: await fingerprint(source),
    settings: resultSettings(settings),
  } as const;
  const existing = await examineOutput(out, record, force);
  if ('done' in existing) return { ...existing.done, already: true };
  if (hooks.onProgress) hooks.onProgress({ kind: 'plan', plan: await withEstimate(plan) });
  const reader = new TensorReader();
  try {
    const sigmas = await measureGroups(groups, reader, memory, hooks);
    const written = settings.format === 'mobe' ? 'factors' : 'weights';
    const report = await convert({
      plan,
      out,
      replaces: existing.replaces,
      reader,
      async *expertBranch(onGroup, signal) {
        const fitted = fitGroups({ groups, reader, memory, settings, sigmas, written, hooks, signal });
        for await (const factorization of fitted) yield* fold(factorization, settings.format, onGroup);
      },
      config: settings.format === 'mobe' ? compressedConfig(plan, settings.solver, record.sourceFingerprint) : {},
      record,
      hooks,
      started,
    });
    return { ...report, already: false };
  } finally {
    await reader.close();
  }
}
