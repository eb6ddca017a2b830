import type { FloatDtype } from '../src/checkpoint/dtype.js';
import { fingerprint, openCheckpoint } from '../src/checkpoint/open-checkpoint.js';
import { checkOutside } from '../src/checkpoint/output-folder.js';
import { type ByteRange, TensorReader } from '../src/checkpoint/tensor-reader.js';
import { compressedConfig } from '../src/conversion/compression.js';
import { examineOutput } from '../src/conversion/existing-output.js';
import { type FactorFile, openFactorFolder } from '../src/conversion/factor-files.js';
import { groupTensors, planGroups } from '../src/conversion/groups.js';
import { planConversion } from '../src/conversion/plan.js';
import type { FittedGroupReport } from '../src/conversion/report.js';
import { type CompressOptions, type Format, resolveSettings } from '../src/conversion/settings.js';
import { FactorMismatchError } from '../src/errors.js';
import { detectModel } from '../src/models/detect.js';
import type { MoeModel } from '../src/models/family.js';
import type { RunOptions, RunResult } from './compress.js';
import { convert } from './convert.js';
import { passThrough } from './pass-through.js';
import { type FactoredGroup, rebuildWeights } from './rebuild.js';
import type { OutputChunk } from './records.js';
import { ComputeWorker } from './worker-pool.js';

export type ExportOptions = Pick<CompressOptions, 'format' | 'shardSize' | 'threads'>;

/** Writes the checkpoint that `compress` would have written, from the factor files `fit` left in `factors`. */
export async function exportFactors(
  model: string,
  factors: string,
  out: string,
  options: ExportOptions = {},
  { force = false, ...hooks }: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  const { format, shardSize, threads, engine } = resolveSettings(options);
  const source = await openCheckpoint(model);
  const detected = detectModel(source);
  const sourceFingerprint = await fingerprint(source);
  const files = await openFactorFolder(factors);
  await checkOutside(out, [source.folder, factors]);
  const factored = files.map((file) => matchFactors(file, detected, format, sourceFingerprint));
  const plan = planConversion({ source, groups: factored.map(({ group }) => group), format, shardBytes: shardSize });
  const { settings: fitted } = (files[0] as FactorFile).metadata;
  const record = { kind: 'export', sourceFingerprint, settings: { ...fitted, format, shardSize } } as const;
  const existing = await examineOutput(out, record, force);
  if ('done' in existing) return { ...existing.done, already: true };
  const reader = new TensorReader();
  const worker = format === 'hf' ? new ComputeWorker({ engine, threads }) : undefined;
  try {
    const report = await convert({
      plan,
      out,
      replaces: existing.replaces,
      reader,
      async *expertBranch(onGroup) {
        for (const [i, it] of factored.entries()) {
          const report = { ...(files[i] as FactorFile).metadata.report, seconds: 0 };
          if (worker) yield* rebuildGroup(it, report, reader, worker, onGroup);
          else {
            yield* copyFactors(it, reader);
            onGroup(report);
          }
        }
      },
      config:
        format === 'mobe'
          ? compressedConfig({ ...plan, model: detected }, String(fitted.solver), sourceFingerprint)
          : {},
      record,
      hooks,
      started,
    });
    return { ...report, already: false };
  } finally {
    await worker?.close();
    await reader.close();
  }
}

/** The group a factor file belongs to. Throws where the file is not of this model. */
function matchFactors(file: FactorFile, model: MoeModel, format: Format, sourceFingerprint: string): FactoredGroup {
  const { path, metadata, problem, tensors } = file;
  const { layer, projection } = metadata.report;
  if (metadata.sourceFingerprint !== sourceFingerprint)
    throw new FactorMismatchError(path, 'it was fitted to another checkpoint');
  const { bases, rank, activation } = problem;
  const [group] = planGroups(
    model,
    resolveSettings({ format, bases, rank, activation, layers: [layer], projections: [projection] }),
  );
  if (!group || JSON.stringify(group.problem) !== JSON.stringify(problem)) {
    throw new FactorMismatchError(path, `its shapes do not fit layer ${layer} ${projection}`);
  }
  const { A, B, alpha } = tensors;
  const size = (A.end - A.start) / problem.experts;
  const factor = (expert: number): ByteRange => ({
    file: path,
    start: A.start + expert * size,
    end: A.start + (expert + 1) * size,
  });
  return {
    group: { ...group, dtype: A.dtype as FloatDtype },
    bases: B,
    coefficients: alpha,
    factor,
    dense: group.experts,
  };
}

async function* rebuildGroup(
  factored: FactoredGroup,
  fitted: FittedGroupReport,
  reader: TensorReader,
  worker: ComputeWorker,
  onGroup: (report: FittedGroupReport) => void,
): AsyncGenerator<OutputChunk> {
  const { experts, rows, cols } = factored.group.problem;
  const { squaredError, squaredNorm } = yield* rebuildWeights(factored, reader, worker);
  onGroup({
    ...fitted,
    relativeError: Math.sqrt(squaredError / squaredNorm),
    mse: squaredError / (experts * rows * cols),
  });
}

/** The factors as they are, under their native names. */
async function* copyFactors(
  { group, bases, coefficients, factor }: FactoredGroup,
  reader: TensorReader,
): AsyncGenerator<OutputChunk> {
  const ranges = [bases, coefficients, ...group.experts.map((_, expert) => factor(expert))];
  for (const [i, { name, dtype, shape }] of groupTensors(group, 'mobe').entries()) {
    yield* passThrough([{ ...(ranges[i] as ByteRange), name, dtype, shape }], reader);
  }
}
