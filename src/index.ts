/**
 * mobe-stream as a library: everything the commands do. Nothing here prints; progress goes to the `onProgress` hook, and
 * every failure a user can cause is a `MobeError`.
 *
 * ```ts
 * import { compress } from 'mobe-stream';
 * const { groups } = await compress('Qwen3-30B-A3B', 'Qwen3-30B-A3B-MoBE', { keep: 0.76, maxMemory: 12e9 });
 * ```
 */

export { reportPage } from '../streams/bench/bench-page.js';
// Measurements.
export { type BenchOptions, type BenchReport, benchmark } from '../streams/bench/benchmark.js';
export { ComputeThread } from '../streams/compute/compute-thread.js';
export { type JobRunner, localRunner, RunnerPool } from '../streams/compute/job-runner.js';
// Stages of the dataflow, to compose differently.
export { BufferPool, type PooledBuffer } from '../streams/flow/buffer-pool.js';
export { ByteBudget } from '../streams/flow/byte-budget.js';
export { type Composer, compose, merge } from '../streams/flow/highland.js';
export { bottleneck, createStageClocks, type StageClocks, type StageTimes } from '../streams/flow/stage-clock.js';
// What the commands do.
export { type BadTensor, checkWeights, type WeightCheck } from '../streams/operations/check-weights.js';
export { compress } from '../streams/operations/compress.js';
export {
  type Comparison,
  type EvaluateHooks,
  type Evaluation,
  evaluate,
  type ModelScore,
} from '../streams/operations/evaluate.js';
export { type ExpandOptions, expand } from '../streams/operations/expand.js';
export { type ExportOptions, exportFactors } from '../streams/operations/export.js';
export { fitFactors } from '../streams/operations/fit.js';
export { type Generation, generate } from '../streams/operations/generate.js';
export { type ImportOptions, importFactors } from '../streams/operations/import.js';
export { inspect } from '../streams/operations/inspect.js';
export { type OutputPlace, registerOutput } from '../streams/operations/open-output.js';
export { plan, type TimedPlan } from '../streams/operations/plan.js';
export { type ReportOptions, type WrittenReport, writeReport } from '../streams/operations/report.js';
export { type Verification, type VerifiedGroup, type VerifyOptions, verify } from '../streams/operations/verify.js';
export { type Integrity, verifyIntegrity } from '../streams/operations/verify-manifest.js';
export type {
  ExpertGroup,
  FinishedGroup,
  FittedGroup,
  FoldedExpert,
  NormalisedGroup,
  OutputChunk,
  OutputRecord,
  TensorRecord,
} from '../streams/records.js';
export type { FoldProgress, Progress, RunHooks, RunOptions, RunResult, StepProgress } from '../streams/run-options.js';
export { type FactoriseOptions, factorise } from '../streams/stages/factorise.js';
export { fold } from '../streams/stages/fold.js';
export { groupExperts } from '../streams/stages/group-experts.js';
export { normalise } from '../streams/stages/normalise.js';
export { passThrough } from '../streams/stages/pass-through.js';
export { readExperts } from '../streams/stages/read-experts.js';
export { writeOutput } from '../streams/stages/write-output.js';
// Checkpoints as bytes.
export { decodeFloats, encodeFloats } from './checkpoint/codec.js';
export { byteLength, type FloatDtype } from './checkpoint/dtype.js';
export { decodeRows, type Encoding, storedBytes } from './checkpoint/encoding.js';
export { encodeHeader, parseHeader, parseHeaderLength, type TensorInfo, type TensorSpec } from './checkpoint/header.js';
export { type Checkpoint, fingerprint, openCheckpoint, openShard, type Shard } from './checkpoint/open-checkpoint.js';
// Models and plans.
export { type CompressionPlan, planCompression } from './conversion/compression-plan.js';
export {
  type FactorFile,
  factorLayout,
  openFactorFile,
  openFactorFolder,
} from './conversion/factor-files.js';
export { FactorFolder, type FactorFolderOptions } from './conversion/factor-folder.js';
export type { GroupPlan } from './conversion/group-plan.js';
export type { Inspection, Tally } from './conversion/inspection.js';
export type { MemoryPlan } from './conversion/memory-plan.js';
export type { FittedGroupReport, GroupReport, RunReport, StoredReport } from './conversion/run-report.js';
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
// Running models.
export {
  type LanguageModel,
  type ModelOptions,
  openLanguageModel,
} from './inference/language-model.js';
export type { EvaluateOptions, GenerateOptions } from './inference/run-options.js';
export { Runner } from './inference/runner.js';
export type { SequencePart } from './inference/sequence-parts.js';
export { openTokenizer, type TextStream, type Tokenizer, textStream } from './inference/tokenizer.js';
// Methods.
export type {
  CompleteOptions,
  ExpertFactors,
  Factors,
  Fit,
  GroupNames,
  GroupShape,
  Method,
  MethodOptions,
  MethodProblem,
  Metric,
  Targets,
} from './methods/method.js';
// The mathematics.
export { solveAdam } from './methods/mobe/adam.js';
export * from './methods/mobe/problem.js';
export { createReconstruction, type Reconstruction } from './methods/mobe/reconstruct.js';
export { createRefit, type Refit } from './methods/mobe/refit.js';
export { solveVarpro } from './methods/mobe/varpro.js';
export { METHODS } from './methods/registry.js';
export { denseParameters, groupParameters } from './methods/sizes.js';
export { type Baseline, groupedSvd, perExpertSvd, sharedBasisSvd } from './methods/svd/baselines.js';
export { detectModel } from './models/detect.js';
export type { ExpertLayer, Family, MoeModel, Projection } from './models/family.js';
export { encodeIndex, type Layout, layoutFile, layoutShards, type ShardLayout } from './output/layout.js';
export { nullOutput } from './output/null-output.js';
export type { Output } from './output/output.js';
export { OutputFolder } from './output/output-folder.js';
export { ShardWriter } from './output/shard-writer.js';
export {
  type ByteRange,
  type FileEntry,
  type Files,
  LocalFiles,
  type RangeReader,
  type SourceFolder,
} from './sources/files.js';
export { joinFiles } from './sources/join-files.js';
export { openFiles, openSource, registerSource, type Source, type SourceOptions } from './sources/open-source.js';
// Files of torch.save as bytes.
export { openTorchFile } from './torch/open-torch-file.js';
