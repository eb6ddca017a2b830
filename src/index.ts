/**
 * mobe-stream as a library: everything the commands do. Nothing here prints; progress goes to the `onProgress` hook, and
 * every failure a user can cause is a `MobeError`.
 *
 * ```ts
 * import { compress } from 'mobe-stream';
 * const { groups } = await compress('Qwen3-30B-A3B', 'Qwen3-30B-A3B-MoBE', { keep: 0.76, maxMemory: 12e9 });
 * ```
 */

// Measurements.
export { type BenchOptions, type BenchReport, benchmark } from '../streams/bench/benchmark.js';
export { reportPage } from '../streams/bench/page.js';
// Stages of the dataflow, to compose differently.
export { BufferPool, type PooledBuffer } from '../streams/buffer-pool.js';
export { ByteBudget } from '../streams/byte-budget.js';
// What the commands do.
export { compress } from '../streams/compress.js';
export {
  type Comparison,
  type EvaluateHooks,
  type Evaluation,
  evaluate,
  type ModelScore,
} from '../streams/evaluate.js';
export { type ExpandOptions, expand } from '../streams/expand.js';
export { type ExportOptions, exportFactors } from '../streams/export.js';
export { type FactoriseOptions, factorise } from '../streams/factorise.js';
export { fitFactors } from '../streams/fit.js';
export { type Fitter, FitterPool, localFitter } from '../streams/fitter.js';
export { fold } from '../streams/fold.js';
export { type Generation, generate } from '../streams/generate.js';
export { groupExperts } from '../streams/group-experts.js';
export { compose, inLanes, merge } from '../streams/highland.js';
export { type ImportOptions, importFactors } from '../streams/import.js';
export { inspect } from '../streams/inspect.js';
export { normalise } from '../streams/normalise.js';
export { passThrough } from '../streams/pass-through.js';
export { plan, type TimedPlan } from '../streams/plan.js';
export type { FoldProgress, Progress, RunHooks, RunOptions, RunResult, StepProgress } from '../streams/progress.js';
export { readExperts } from '../streams/read-experts.js';
export type { ExpertGroup, Factorization, NormalisedGroup, OutputChunk, TensorRecord } from '../streams/records.js';
export { type ReportOptions, type WrittenReport, writeReport } from '../streams/report.js';
export { bottleneck, createStageClocks, type StageClocks, type StageTimes } from '../streams/stage-clock.js';
export { type Verification, type VerifiedGroup, type VerifyOptions, verify } from '../streams/verify.js';
export { type Integrity, verifyIntegrity } from '../streams/verify-manifest.js';
export { ComputeWorker } from '../streams/worker-pool.js';
export { writeCheckpoint } from '../streams/write-checkpoint.js';
export { writeFactorFile } from '../streams/write-factors.js';
// Checkpoints as bytes.
export { decodeFloats, encodeFloats } from './checkpoint/codec.js';
export { byteLength, type FloatDtype } from './checkpoint/dtype.js';
export { decodeRows, type Encoding, storedBytes } from './checkpoint/encoding.js';
export { type ByteRange, type FileEntry, type Files, LocalFiles, type RangeReader } from './checkpoint/files.js';
export { encodeHeader, parseHeader, parseHeaderLength, type TensorInfo, type TensorSpec } from './checkpoint/header.js';
export { encodeIndex, type Layout, layoutFile, layoutShards, type ShardLayout } from './checkpoint/layout.js';
export { type Checkpoint, fingerprint, openCheckpoint, openShard, type Shard } from './checkpoint/open-checkpoint.js';
export { OutputFolder } from './checkpoint/output-folder.js';
export { ShardWriter } from './checkpoint/shard-writer.js';
// Models and plans.
export { type CompressionPlan, planCompression } from './conversion/compression.js';
export { type FactorFile, openFactorFile, openFactorFolder } from './conversion/factor-files.js';
export type { GroupPlan } from './conversion/groups.js';
export type { Inspection, Tally } from './conversion/inspect.js';
export type { MemoryPlan } from './conversion/memory.js';
export type { FittedGroupReport, GroupReport, RunReport, StoredReport } from './conversion/report.js';
export { type CompressOptions, resolveSettings, type Settings } from './conversion/settings.js';
// Engines.
export { type ChosenEngine, chooseEngine, type EngineChoice } from './engine/choose-engine.js';
export { createEngine, ENGINE_NAMES, type EngineName } from './engine/create-engine.js';
export type { Engine, EngineFacts, EngineOptions, EngineTensor, Program } from './engine/engine.js';
export { type Graph, trace } from './engine/graph.js';
export * as ops from './engine/ops.js';
export { type BrokenEngine, type ProbeOptions, probeEngine, type WorkingEngine } from './engine/probe.js';
export { createInterpreter, type TensorFlow, type TfTensor } from './engine/tensorflow/interpreter.js';
export { type LinkedTensorflow, linkTensorflow } from './engine/tensorflow/link.js';
export * from './errors.js';
// The mathematics.
export { solveAdam } from './factorization/adam.js';
export { type Baseline, groupedSvd, perExpertSvd, sharedBasisSvd } from './factorization/baselines.js';
export * from './factorization/problem.js';
export { createReconstruction, type Reconstruction } from './factorization/reconstruct.js';
export { createRefit, type Refit } from './factorization/refit.js';
export { solveVarpro } from './factorization/varpro.js';
// Running models.
export {
  type LanguageModel,
  type ModelOptions,
  openLanguageModel,
} from './inference/language-model.js';
export type { EvaluateOptions, GenerateOptions } from './inference/options.js';
export { Runner } from './inference/runner.js';
export type { SequencePart } from './inference/sequence-parts.js';
export { openTokenizer, type TextStream, type Tokenizer, textStream } from './inference/tokenizer.js';
export { detectModel } from './models/detect.js';
export type { ExpertLayer, Family, MoeModel, Projection } from './models/family.js';
// Files of torch.save as bytes.
export { openTorchFile } from './torch/open-torch-file.js';
