import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import { readReport } from '../../src/conversion/existing-output.js';
import { planExpansion } from '../../src/conversion/expansion-plan.js';
import { type GroupPlan, groupKey, productOf } from '../../src/conversion/group-plan.js';
import { denseConfig } from '../../src/conversion/native-config.js';
import { engineRecord, isRepaired } from '../../src/conversion/run-report.js';
import { type CompressOptions, resolveSettings } from '../../src/conversion/settings.js';
import { chooseEngine } from '../../src/engine/choose-engine.js';
import { MODELLING_NAMES } from '../../src/models/modelling-files.js';
import type { RangeReader } from '../../src/sources/files.js';
import { type ComputeThread, withThread } from '../compute/compute-thread.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { OutputRecord } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { nativeRanges, rebuildWeights } from '../stages/rebuild.js';
import { convert } from './convert.js';
import type { OutputPlace } from './open-output.js';

/** Options of `expand`. */
export type ExpandOptions = Pick<CompressOptions, 'engine' | 'shardSize' | 'threads'>;

/**
 * Rebuilds the standard weights of a native checkpoint and writes them to `out`. They are the same weights that `--format hf`
 * writes. Throws a `MobeError`, as `compress` does.
 */
export async function expand(
  native: Source,
  out: OutputPlace,
  options: ExpandOptions = {},
  run: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  const { shardSize, threads, engine: choice } = resolveSettings(options);
  const source = await openSource(native, run);
  const plan = planExpansion(source, shardSize);
  const made = await readReport(source.folder, source.files);
  const engine = await chooseEngine(choice, threads, productOf(plan.groups[0]));
  return convert({
    plan,
    out,
    inputs: [source.folder],
    circumstances: { threads },
    experts: ({ reader, missing, signal }) =>
      withThread({ engine: engine.name, threads }, signal, async function* (thread) {
        // A repaired down_proj is copied. The record has to tell of it, because it differs from the original model's.
        for (const repaired of made?.groups.filter(isRepaired) ?? []) yield { finished: repaired };
        yield* rebuildAll(plan, missing, reader, thread);
      }),
    companions: {
      modelling: { leave: MODELLING_NAMES },
      config: denseConfig(plan),
    },
    record: {
      kind: 'expand',
      sourceFingerprint: await fingerprint(source),
      engine: engineRecord(engine),
      settings: { format: 'hf', engine: engine.name, shardSize },
    },
    run,
    started,
  });
}

async function* rebuildAll(
  plan: ConversionPlan,
  groups: readonly GroupPlan[],
  reader: RangeReader,
  thread: ComputeThread,
): AsyncGenerator<OutputRecord> {
  for (const group of groups) {
    const started = performance.now();
    yield* rebuildWeights({ group, ...nativeRanges(group, plan.source) }, plan, reader, thread);
    yield { finished: { ...groupKey(group), seconds: (performance.now() - started) / 1000 } };
  }
}
