/**
 * mobe-stream as a library: the commands as functions, and the parts that they consist of. `docs/library.md` shows how to use it.
 * Nothing here prints. Progress goes to the `onProgress` hook, and every failure that a user can cause is a `MobeError`.
 *
 * ```ts
 * import { compress } from 'mobe-stream';
 * const { groups } = await compress('Qwen3-30B-A3B', 'Qwen3-30B-A3B-MoBE', { keep: 0.76, maxMemory: 12e9 });
 * ```
 *
 * @module
 */

// Operations: one for each command. They take locations or objects.

export {
  type CalibrateHooks,
  type Calibration,
  type CalibrationPlan,
  type CalibrationProgress,
  calibrate,
  type WritingProgress,
} from '../streams/operations/calibrate.js';
export { type CalibrationText, calibrateAndCompress } from '../streams/operations/calibrate-and-compress.js';
export { type BadTensor, checkWeights, type WeightCheck } from '../streams/operations/check-weights.js';
export { compress, compressWith } from '../streams/operations/compress.js';
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
export { plan } from '../streams/operations/plan.js';
export { type RecordInUse, recordWhileUsed } from '../streams/operations/record-while-used.js';
export { type RepairOptions, repair } from '../streams/operations/repair.js';
export { type ReportOptions, type WrittenReport, writeReport } from '../streams/operations/report.js';
export { streamCheckpoint } from '../streams/operations/stream.js';
export { type Verification, type VerifiedGroup, type VerifyOptions, verify } from '../streams/operations/verify.js';
export { type Integrity, verifyIntegrity } from '../streams/operations/verify-manifest.js';

// A farm: groups go through a queue in Redis to any number of machines. Needs the packages bullmq and ioredis.

export { type FarmStatus, farmStatus, type RunningGroup, type RunStatus } from '../streams/farm/status.js';
export { type FarmOptions, submitToFarm } from '../streams/farm/submit.js';
export { type FarmEvent, type FarmWorker, type FarmWorkerOptions, workForFarm } from '../streams/farm/work.js';

// The options, the progress and the result of a run.

export type { FoldProgress, Progress, RunHooks, RunOptions, RunResult, StepProgress } from '../streams/run-options.js';
export type {
  EngineRecord,
  FittedGroupReport,
  GroupReport,
  KeptGroupReport,
  RunReport,
  StoredReport,
} from './conversion/run-report.js';
export * from './errors.js';

// Plans: the work of a run, planned from headers and options.

export { type CompressionPlan, planCompression } from './conversion/compression-plan.js';
export type { ConversionPlan, Copy } from './conversion/conversion-plan.js';
export type { TimedPlan } from './conversion/estimate.js';
export { type GroupKey, type GroupPlan, groupKey, groupLabel } from './conversion/group-plan.js';
export type { Inspection, Tally } from './conversion/inspection.js';
export type { MemoryPlan, RemoteFitters } from './conversion/memory-plan.js';
export {
  type CompressOptions,
  type Format,
  type OutputFormat,
  type RunSettings,
  resolveSettings,
  type Settings,
} from './conversion/settings.js';
export type { Slice, SlicePart } from './conversion/slices.js';

// A pipeline: its branches, their stages, and the functions that compose them.

export { BufferPool, type OnHeld, type PooledBuffer } from '../streams/flow/buffer-pool.js';
export { ByteBudget, type Lease } from '../streams/flow/byte-budget.js';
export { type Composer, compose, merge, type Transform } from '../streams/flow/highland.js';
export { type OwnStage, runOwnStage } from '../streams/flow/own-stage.js';
export {
  bottleneck,
  createStageClocks,
  type Slowdown,
  type StageClocks,
  type StageTimes,
} from '../streams/flow/stage-clock.js';
export type { BranchContext, Conversion } from '../streams/operations/convert.js';
export type { Companions, Recorded } from '../streams/operations/small-files.js';
export { compressExperts, type ExpertsOptions, type WriteOptions, writeAll } from '../streams/pipeline.js';
export type {
  ExpertGroup,
  FinishedGroup,
  FittedGroup,
  FoldedExpert,
  Held,
  NormalisedGroup,
  OutputChunk,
  OutputRecord,
  TensorRecord,
} from '../streams/records.js';
export { type FactoriseOptions, factorise } from '../streams/stages/factorise.js';
export { fold } from '../streams/stages/fold.js';
export { groupExperts } from '../streams/stages/group-experts.js';
export { type JoinOptions, joinSlices } from '../streams/stages/join-slices.js';
export { type NormaliseOptions, normalise } from '../streams/stages/normalise.js';
export { keepGroup, passThrough } from '../streams/stages/pass-through.js';
export { readExperts } from '../streams/stages/read-experts.js';
export { type WriteHooks, writeOutput } from '../streams/stages/write-output.js';

// Jobs: the fit of a group, and its runners.

export type {
  Compute,
  ComputeOptions,
  RebuiltWeights,
} from '../streams/compute/compute.js';
export { type CallMethod, ComputeThread, type RunInThread } from '../streams/compute/compute-thread.js';
export {
  type ExpertOutput,
  type FitJob,
  type FittedFactors,
  type JobHooks,
  type JobOutput,
  runJob,
} from '../streams/compute/job.js';
export { type JobRunner, localRunner, type RunnerHooks, RunnerPool } from '../streams/compute/job-runner.js';
export type { RemoteWorkers } from '../streams/compute/remote-runner.js';
export { type RunnersOptions, withRunners } from '../streams/compute/runners.js';
export type { SquaredError } from '../streams/compute/squared-error.js';
export type { StateFile, StatePlace } from '../streams/compute/state-file.js';
export type { LoadedFactors, StoredWeights } from '../streams/compute/stored-weights.js';

// Factors as they are stored.

export { type FactorDtype, QUANTISED_NAMES, type QuantisedDtype } from './checkpoint/factor-dtype.js';
export {
  decodeFactors,
  encodeFactors,
  type FactorForm,
  type NamedPart,
  partsOf,
  type StoredDtypes,
  type StoredFactor,
  type StoredParts,
  storedFactors,
} from './methods/factor-storage.js';

// Methods of factorisation.

export type { LossPoint } from './methods/loss-curve.js';
export type {
  CompleteOptions,
  DefaultSizes,
  ExpertFactorOptions,
  ExpertFactors,
  FactorShape,
  Factors,
  Fit,
  FitOptions,
  FitState,
  FitStep,
  GroupNames,
  GroupShape,
  Method,
  MethodOptions,
  MethodProblem,
  Metric,
  MetricForm,
  MetricMatrix,
  MetricMatrixForm,
  NativeFactors,
  NativePlace,
  NativeSource,
  ProjectionShape,
  Quality,
  Reconstruction,
  Rounding,
  StateStore,
  StoredFactors,
  Targets,
} from './methods/method.js';
export { denseParameters, groupParameters } from './methods/parameters.js';
export { METHODS, registerMethod } from './methods/registry.js';

// Sources, and the checkpoints in them.

export { decodeFloats, encodeFloats } from './checkpoint/codec.js';
export { byteLength, type FloatDtype } from './checkpoint/dtype.js';
export { decodeRows, type Encoding, type StoredEncoding, storedBytes } from './checkpoint/encoding.js';
export type { CodesEncoding } from './checkpoint/encodings/codes.js';
export type { Range, StoredBytes } from './checkpoint/encodings/decoder.js';
export type { FloatEncoding } from './checkpoint/encodings/float.js';
export type { Fp4Encoding } from './checkpoint/encodings/fp4.js';
export type { AwqEncoding, GptqEncoding } from './checkpoint/encodings/grouped-rows.js';
export type { PackedEncoding } from './checkpoint/encodings/packed.js';
export type { View } from './checkpoint/encodings/view.js';
export {
  encodeHeader,
  parseHeader,
  parseHeaderLength,
  type ShardHeader,
  type TensorInfo,
  type TensorSpec,
} from './checkpoint/header.js';
export {
  type Checkpoint,
  fingerprint,
  type HeaderMemory,
  openCheckpoint,
  openShard,
  type Shard,
} from './checkpoint/open-checkpoint.js';
export type { SideFile } from './checkpoint/side-files.js';
export { decodeMatrix, type MatrixFormat, readMatrix, type StoredMatrix } from './checkpoint/stored-matrix.js';
export {
  type FactorContext,
  type FactorFile,
  type FactorMetadata,
  factorLayout,
  openFactorFile,
  openFactorFolder,
} from './conversion/factor-files.js';
export { detectModel } from './models/detect.js';
export type { Config, ExpertLayer, Family, MoeModel, NativeForm, Projection } from './models/family.js';
export type { ModellingFile } from './models/modelling-files.js';
export type { ConfigChanges, GroupNumber } from './models/native.js';
export {
  type ByteRange,
  type FileEntry,
  type Files,
  LocalFiles,
  type RangeReader,
  type SourceFolder,
} from './sources/files.js';
export { joinFiles } from './sources/join-files.js';
export {
  type OpenFiles,
  openFiles,
  openSource,
  registerSource,
  type Source,
  type SourceOptions,
} from './sources/open-source.js';
export type { WebOptions, WebTiming } from './sources/web/web-options.js';
export { openTorchFile } from './torch/open-torch-file.js';

// Outputs.

export type { OpenedOutput, OutputRequest } from '../streams/operations/open-folder.js';
export { type OpenOutput, type OutputPlace, registerOutput } from '../streams/operations/open-output.js';
export type { WantedOutput } from './conversion/existing-output.js';
export { FactorFolder, type FactorFolderOptions } from './conversion/factor-folder.js';
export type { FileIdentity, FileSystem, OpenFile } from './file-system.js';
export type { JournalEntry, PartEntry } from './output/journal.js';
export { encodeIndex, type Layout, layoutFile, layoutShards, type ShardLayout } from './output/layout.js';
export type { HashedPart } from './output/manifest.js';
export { nullOutput } from './output/null-output.js';
export type { Output } from './output/output.js';
export { OutputFolder, type OutputFolderOptions } from './output/output-folder.js';
export { ShardWriter } from './output/shard-writer.js';
export type { FinishedUnits, RunIdentity, Unit } from './output/unfinished-run.js';

// Services for other machines.

export { type WorkerOptions, work } from '../streams/compute/worker.js';
export type { ListenAt, PeerOptions, ServiceHooks } from '../streams/machines/peer-options.js';
export { type ReceiveHooks, type Receiver, receive, receivePipe } from '../streams/machines/receive.js';
export { serve } from '../streams/machines/serve.js';
export type { Listener } from './transport/listen.js';

// Engines, and programs for them.

export { type ChosenEngine, chooseEngine, type EngineChoice } from './engine/choose-engine.js';
export { createEngine, ENGINE_NAMES, type EngineName } from './engine/create-engine.js';
export type { Engine, EngineFacts, EngineOptions, EngineTensor, Precision, Program } from './engine/engine.js';
export type { ProductShape } from './engine/gemm-rate.js';
export { type Graph, type Inputs, type Shapes, trace } from './engine/graph.js';
export * as ops from './engine/ops.js';
export { type BrokenEngine, type ProbeOptions, probeEngine, type WorkingEngine } from './engine/probe.js';
export { allowTensorCores, simulateTensorCores } from './engine/tensor-cores.js';
export { createInterpreter, type TensorFlow, type TfTensor } from './engine/tensorflow/interpreter.js';
export { type LinkedTensorflow, linkTensorflow } from './engine/tensorflow/link-tensorflow.js';

// The mathematics of MoBE and of its baselines.

export { solveAdam } from './methods/mobe/adam.js';
export {
  ACTIVATIONS,
  type Activation,
  factorParameters,
  type Problem,
  type SharedFactors,
  type Sizes,
  type Solution,
  type SolverName,
  type SolverOptions,
} from './methods/mobe/problem.js';
export { createReconstruction, type Reconstruction as MobeReconstruction } from './methods/mobe/reconstruct.js';
export { createRefit, type Refit } from './methods/mobe/refit.js';
export { solveVarpro } from './methods/mobe/varpro.js';
export { type Baseline, groupedSvd, perExpertSvd, sharedBasisSvd } from './methods/svd/baselines.js';

// Calibration records.

export { type ExpertTokens, tokensOfExperts } from './calibration/expert-tokens.js';
export { type OpenRecordOptions, openRecord } from './calibration/open-record.js';
export type { CalibrationRecord, LayerRecord, RecordFacts } from './calibration/record.js';
export type { CalibrateOptions } from './inference/run-options.js';

// Running models.

export type { KeptTokens } from './inference/attention.js';
export type { KeyValueCache } from './inference/key-value-cache.js';
export { type LanguageModel, type ModelOptions, openLanguageModel } from './inference/language-model.js';
export type { ModelMemory } from './inference/memory-budget.js';
export type { EvaluateOptions, GenerateOptions } from './inference/run-options.js';
export { type Feed, type Recipe, Runner } from './inference/runner.js';
export type { SequencePart } from './inference/sequence-parts.js';
export { openTokenizer, type TextStream, type Tokenizer, textStream } from './inference/tokenizer.js';

// Measurements.

export { reportPage } from '../streams/bench/bench-page.js';
export { type BenchOptions, type BenchReport, benchmark, type Machine } from '../streams/bench/benchmark.js';
export type { Row as BenchRow, Spread, StageShare } from '../streams/bench/rows.js';
export type { Target as BenchTarget } from '../streams/bench/targets.js';
export type { SampleOfModel } from '../streams/bench/task.js';
export type { Section } from './page/page.js';
