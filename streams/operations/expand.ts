import type { TensorInfo } from '../../src/checkpoint/header.js';
import { fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import type { StoredMatrix } from '../../src/checkpoint/stored-matrix.js';
import { type ConversionPlan, planConversion } from '../../src/conversion/conversion-plan.js';
import type { GroupPlan } from '../../src/conversion/group-plan.js';
import { findNativeGroups } from '../../src/conversion/native-groups.js';
import { engineRecord, type GroupReport } from '../../src/conversion/run-report.js';
import { type CompressOptions, resolveSettings } from '../../src/conversion/settings.js';
import { chooseEngine } from '../../src/engine/choose-engine.js';
import { FAMILIES } from '../../src/models/detect.js';
import { modellingFiles } from '../../src/models/modelling-files.js';
import { denseConfig } from '../../src/models/native.js';
import type { RangeReader } from '../../src/sources/files.js';
import { type ComputeWorker, withWorker } from '../compute/worker-pool.js';
import { openSource, type Source } from '../machines/remote-files.js';
import type { OutputChunk } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { type FactoredGroup, rebuildWeights } from '../stages/rebuild.js';
import { convert } from './convert.js';
import type { OutputPlace } from './open-output.js';

export type ExpandOptions = Pick<CompressOptions, 'engine' | 'shardSize' | 'threads'>;

/** Writes a native MoBE checkpoint as the standard weights it stands for: the very weights `--format hf` writes. */
export async function expand(
  native: Source,
  out: OutputPlace,
  options: ExpandOptions = {},
  run: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  const { shardSize, threads, engine: choice } = resolveSettings(options);
  const source = await openSource(native, run);
  const groups = findNativeGroups(source);
  const engine = await chooseEngine(choice, threads, groups[0]?.problem);
  const dropped = new Set(groups.flatMap(({ names }) => [names.bases, names.coefficients]));
  // What is quantised in a native checkpoint was meant to stay so.
  const plan = planConversion({ source, groups, format: 'hf', shardBytes: shardSize, dropped, keepQuantised: true });
  return convert({
    plan,
    out,
    inputs: [source.folder],
    circumstances: { threads },
    expertBranch: ({ reader, missing, onGroup, signal }) =>
      withWorker({ engine: engine.name, threads }, signal, (worker) =>
        rebuildAll(plan, missing, reader, worker, onGroup),
      ),
    modelling: { leave: FAMILIES.flatMap(({ native }) => (native ? modellingFiles(native) : [])) },
    config: denseConfig(source.config),
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
  worker: ComputeWorker,
  onGroup: (report: GroupReport) => void,
): AsyncGenerator<OutputChunk> {
  const { source } = plan;
  for (const group of groups) {
    const { layer, projection, group: part, groups: parts, names } = group;
    const factored: FactoredGroup = {
      group,
      bases: source.tensors.get(names.bases) as TensorInfo,
      coefficients: source.tensors.get(names.coefficients) as TensorInfo,
      factor: (expert) => (group.experts[expert] as StoredMatrix).data,
    };
    const started = performance.now();
    yield* rebuildWeights(factored, plan, reader, worker);
    onGroup({ layer, projection, group: part, groups: parts, seconds: (performance.now() - started) / 1000 });
  }
}
