/**
 * Every failure a user can cause, one class each. `exitCode` tells the two kinds apart: 2, the input or the flags are
 * wrong and nothing was started; 1, it failed while running. A message names what failed and where, then what to do.
 */
export abstract class MobeError extends Error {
  abstract readonly exitCode: 1 | 2;
  /** The output folder, where it keeps what was finished so that the same command can go on. */
  declare kept?: string;
  override get name(): string {
    return this.constructor.name;
  }
}

/** The input or the flags are wrong; found before any work. */
export abstract class InputError extends MobeError {
  readonly exitCode = 2;
}

/** Work had begun. */
export abstract class RunError extends MobeError {
  readonly exitCode = 1;
}

// ---- checkpoint folders ------------------------------------------------------------------------------------------

export class NotACheckpointError extends InputError {
  constructor(
    readonly folder: string,
    reason: string,
  ) {
    super(`${folder} is not a checkpoint: ${reason}. Give the folder that holds config.json and *.safetensors.`);
  }
}

export class InvalidJsonError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: ${reason}. The file is damaged: download it again.`);
  }
}

export class MissingShardError extends InputError {
  constructor(
    readonly file: string,
    readonly tensors: number,
  ) {
    super(`${file} is missing; the index places ${tensors} tensor(s) in it. Download that shard.`);
  }
}

export class ExtraShardError extends InputError {
  constructor(readonly file: string) {
    super(`${file} is not named by the index. It belongs to another download: remove it, or fetch the matching index.`);
  }
}

export class TensorNotInShardError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
  ) {
    super(
      `The index places tensor "${tensor}" in ${file}, which does not hold it. Index and shards are of different downloads.`,
    );
  }
}

export class UnindexedTensorError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
  ) {
    super(
      `${file} holds tensor "${tensor}", which the index does not place there. Index and shards are of different downloads.`,
    );
  }
}

export class UnsafePathError extends InputError {
  constructor(
    readonly file: string,
    readonly path: string,
  ) {
    super(`${file} names the file ${JSON.stringify(path)}, which is not a plain name. Refusing to leave the folder.`);
  }
}

// ---- safetensors headers -----------------------------------------------------------------------------------------

export class InvalidHeaderError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: not a safetensors file: ${reason}. Download it again.`);
  }
}

export class HeaderTooLongError extends InputError {
  constructor(
    readonly file: string,
    readonly length: bigint,
    readonly limit: number,
    what: string,
  ) {
    super(
      `${file}: the header claims ${length} bytes, ${what} ${limit}. The file is damaged or truncated: download it again.`,
    );
  }
}

export class DuplicateKeyError extends InputError {
  constructor(
    readonly file: string,
    readonly key: string,
  ) {
    super(
      `${file}: the key ${JSON.stringify(key)} appears twice. Which one is meant cannot be known: download the file again.`,
    );
  }
}

export class TruncatedShardError extends InputError {
  constructor(
    readonly file: string,
    readonly tensor: string,
    readonly expected: number,
    readonly actual: number,
  ) {
    super(
      `${file} is truncated: tensor "${tensor}" ends at byte ${expected}, the file at ${actual}. Download it again.`,
    );
  }
}

export class OffsetError extends InputError {
  constructor(
    readonly file: string,
    readonly tensor: string,
    reason: string,
  ) {
    super(`${file}: tensor "${tensor}": ${reason}. The file is damaged: download it again.`);
  }
}

export class SizeMismatchError extends InputError {
  constructor(
    readonly file: string,
    readonly tensor: string,
    readonly expected: number,
    readonly actual: number,
  ) {
    super(
      `${file}: tensor "${tensor}" has ${actual} bytes, its dtype and shape need ${expected}. The file is damaged.`,
    );
  }
}

export class UnsupportedDtypeError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    readonly dtype: string,
  ) {
    super(
      `Tensor "${tensor}" in ${file} is ${dtype}; weights are decoded from F32, F16, BF16, FP8 with scales, and INT4 of compressed-tensors. Convert the checkpoint to bf16 first.`,
    );
  }
}

export class UnsupportedQuantisationError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    what: string,
  ) {
    super(
      `Tensor "${tensor}" in ${file} is quantised in a way mobe does not decode: ${what}. FP8 with scales of blocks, rows or the whole tensor and symmetric INT4 of compressed-tensors are decoded; convert the checkpoint to bf16 first.`,
    );
  }
}

export class MissingScaleError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    readonly scales: string,
  ) {
    super(
      `Tensor "${tensor}" in ${file} is quantised, but its scales "${scales}" are in no shard: without them its values mean nothing. Download the shard that has them.`,
    );
  }
}

export class QuantisedShapeError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    what: string,
  ) {
    super(`Quantised tensor "${tensor}" in ${file}: ${what}. Download the checkpoint again.`);
  }
}

// ---- files of torch.save -----------------------------------------------------------------------------------------

export class TorchFileError extends InputError {
  constructor(
    readonly file: string,
    readonly reason: string,
    readonly remedy = 'The file is damaged: copy or download it again.',
  ) {
    super(`${file}: ${reason}. ${remedy}`);
  }
}

export class PickleNotAllowedError extends InputError {
  constructor(
    readonly file: string,
    readonly what: string,
  ) {
    super(
      `${file}: ${what} is not allowed: only a state dict of plain tensors is read, and nothing in a pickle is executed. If you trust the file, load it with torch and save its state dict alone.`,
    );
  }
}

export class TorchTensorError extends InputError {
  constructor(
    readonly file: string,
    readonly tensor: string,
    readonly reason: string,
    readonly remedy = 'The file is damaged: copy or download it again.',
  ) {
    super(`${file}: tensor "${tensor}" ${reason}. ${remedy}`);
  }
}

// ---- models ------------------------------------------------------------------------------------------------------

export class UnknownModelError extends InputError {
  constructor(
    readonly folder: string,
    seen: string,
  ) {
    super(`${folder} has no experts in a layout mobe knows. ${seen}`);
  }
}

export class UnsupportedLayoutError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    what: string,
  ) {
    super(
      `Tensor "${tensor}" in ${file} holds experts in a layout mobe does not know: ${what}. Save the model with one tensor an expert.`,
    );
  }
}

export class MissingExpertError extends InputError {
  constructor(
    readonly tensor: string,
    readonly folder: string,
  ) {
    super(
      `${folder}: expert tensor "${tensor}" is missing while others of its layer are there. The download is incomplete.`,
    );
  }
}

export class MissingLayerError extends InputError {
  constructor(
    readonly file: string,
    readonly layer: number,
    expected: boolean,
  ) {
    super(
      expected
        ? `${file} gives layer ${layer} routed experts, but no shard has them. The download is incomplete, or the config is of another model.`
        : `${file} makes layer ${layer} a dense one, but the shards hold routed experts for it. Config and weights are of different models.`,
    );
  }
}

export class UnequalExpertError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    what: string,
  ) {
    super(
      `Expert tensor "${tensor}" in ${file} ${what}. The experts of a layer must be alike: the files are of different conversions, or damaged. Download them again.`,
    );
  }
}

export class ConfigMismatchError extends InputError {
  constructor(
    readonly file: string,
    readonly key: string,
    configured: unknown,
    found: unknown,
  ) {
    super(
      `${file} says "${key}": ${JSON.stringify(configured)}, the tensors say ${JSON.stringify(found)}. Config and weights are of different models.`,
    );
  }
}

export class UnsupportedModelError extends InputError {
  constructor(
    readonly file: string,
    what: string,
  ) {
    super(
      `${file}: ${what}, which mobe cannot compute. It runs Qwen3-MoE, DeepSeek-V2, DeepSeek-V3, Kimi-K2 and Ling; for others use transformers.`,
    );
  }
}

export class ConfigValueError extends InputError {
  constructor(
    readonly file: string,
    readonly key: string,
    expected: string,
    readonly value: unknown,
  ) {
    super(
      `${file}: "${key}" is ${value === undefined ? 'missing' : JSON.stringify(value)}, expected ${expected}. The file is damaged or of another model: download it again.`,
    );
  }
}

export class MissingTensorError extends InputError {
  constructor(
    readonly tensor: string,
    readonly folder: string,
  ) {
    super(`${folder} has no tensor "${tensor}", which its config.json asks for. The download is incomplete.`);
  }
}

export class WeightShapeError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    readonly found: readonly number[],
    readonly expected: readonly number[],
  ) {
    super(
      `Tensor "${tensor}" in ${file} has shape [${found}], the config asks for [${expected}]. Config and weights are of different models.`,
    );
  }
}

export class TokenRangeError extends InputError {
  constructor(
    readonly token: number,
    readonly vocabulary: number,
  ) {
    super(
      `The text has token ${token}, the model's vocabulary only ${vocabulary}. Tokenizer and weights are of different models.`,
    );
  }
}

export class UnlikeModelsError extends InputError {
  constructor(
    readonly model: string,
    readonly against: string,
    what: string,
  ) {
    super(`${model} cannot be compared with ${against}: ${what}. Give the model it was made from.`);
  }
}

export class TokenizerError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: ${reason}. The model's tokenizer is needed to read and write text: download it again.`);
  }
}

export class NonFiniteWeightError extends InputError {
  constructor(
    readonly tensor: string,
    readonly file: string,
    readonly count: number,
  ) {
    super(
      `Tensor "${tensor}" in ${file} holds ${count} NaN or infinite value(s). Repair it, or leave its layer out with --layers.`,
    );
  }
}

export class DegenerateGroupError extends InputError {
  constructor(
    readonly group: string,
    readonly value: number,
  ) {
    super(
      `All weights of ${group} are ${value}: there is nothing to factorise. Leave the layer out with --layers or the projection with --projections.`,
    );
  }
}

// ---- options, plans and outputs ----------------------------------------------------------------------------------

export class OptionError extends InputError {
  constructor(
    readonly option: string,
    reason: string,
  ) {
    super(`${option}: ${reason}`);
  }
}

export class NotSmallerError extends InputError {
  constructor(
    readonly before: number,
    readonly after: number,
    remedy: string,
  ) {
    super(
      `The factors would hold ${after} parameters, the experts they replace ${before}: nothing would become smaller. ${remedy}`,
    );
  }
}

export class BudgetTooSmallError extends InputError {
  constructor(
    readonly budget: string,
    readonly smallest: string,
  ) {
    super(`--max-memory ${budget} is too small for this run: the smallest that works is ${smallest}.`);
  }
}

export class OutputInsideInputError extends InputError {
  constructor(
    readonly output: string,
    readonly input: string,
  ) {
    super(`The output ${output} is the input ${input} or lies inside it. Choose a folder outside.`);
  }
}

export class OutputNotEmptyError extends InputError {
  constructor(
    readonly folder: string,
    what: string,
  ) {
    super(`${folder} ${what}. Choose another folder, or replace it with --force.`);
  }
}

/** An earlier run was interrupted there, and it was not this one. */
export class UnfinishedRunError extends InputError {
  constructor(
    readonly folder: string,
    readonly difference: string,
  ) {
    super(
      `${folder} holds an unfinished run that is another than this (${difference}). Run that command again to finish it, or start over with --force.`,
    );
  }
}

export class FolderLockedError extends InputError {
  constructor(
    readonly folder: string,
    who: string,
    remedy: string,
  ) {
    super(`${folder} is being written ${who}. ${remedy}`);
  }
}

export class OutputNotWritableError extends InputError {
  constructor(
    readonly folder: string,
    reason: string,
  ) {
    super(`${folder} cannot be written: ${reason}. Check its owner and permissions, or choose another folder.`);
  }
}

export class DiskTooSmallError extends InputError {
  constructor(
    readonly folder: string,
    readonly needed: string,
    readonly free: string,
  ) {
    super(`${folder} has ${free} free; this run writes ${needed}. Free some space or choose another disk.`);
  }
}

export class UnevenFactorsError extends InputError {
  constructor(what: string) {
    super(
      `A native checkpoint has the same number of bases and the same projections in all its layers: ${what}. Fit what is missing, or write --format hf.`,
    );
  }
}

export class ForeignFactorsError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(
      `${file} cannot be imported: ${reason}. Give the model it was trained on and the folder with all files of the training.`,
    );
  }
}

export class FactorMismatchError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: ${reason}. Run "mobe fit" for this model again.`);
  }
}

export class EngineUnavailableError extends InputError {
  constructor(
    readonly engine: string,
    readonly reason: string,
  ) {
    super(`Engine ${engine} cannot be used here: ${reason.replace(/\.$/, '')}.`);
  }
}

export class TensorTooLargeError extends InputError {
  constructor(
    what: string,
    readonly bytes: string,
    readonly device: string,
    readonly limit: string,
    remedy: string,
  ) {
    super(`${what} are ${bytes}, and one tensor on ${device} can have ${limit}. ${remedy}`);
  }
}

export class NotATensorflowWheelError extends InputError {
  constructor(
    readonly folder: string,
    readonly missing: string,
  ) {
    super(
      `${folder} is not a TensorFlow for Python: it has no ${missing}. Give the folder "tensorflow" in the Location that "pip show tensorflow" names; 2.21 is known to work.`,
    );
  }
}

export class UnsupportedPlatformError extends InputError {
  constructor(
    readonly feature: string,
    readonly platform: string,
    remedy: string,
  ) {
    super(`${feature} does not work on ${platform}. ${remedy}`);
  }
}

export class CompilerMissingError extends InputError {
  constructor(
    readonly compiler: string,
    reason: string,
  ) {
    super(
      `The C++ compiler "${compiler}" cannot be run (${reason}). Install one, e.g. with "apt install g++", or name yours in the environment variable CXX.`,
    );
  }
}

export class DamagedManifestError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: ${reason}. What it lists cannot be checked: copy the result again.`);
  }
}

// ---- while running -----------------------------------------------------------------------------------------------

/** What to do about the failures of a file system that happen to people. */
const REMEDIES: Readonly<Record<string, string>> = {
  ENOSPC: 'Free some space on that disk.',
  EDQUOT: 'Free some space, or have the quota raised.',
  EIO: 'The disk or its connection is failing: look into the system log.',
  EMFILE: 'Raise the limit of open files (ulimit -n).',
  ENFILE: 'The whole system has too many files open: close some programs.',
  EACCES: 'Give this user its permissions back.',
  EPERM: 'Give this user its permissions back.',
  EROFS: 'Mount that disk writable.',
};

const remedyFor = (code: string | undefined, otherwise: string): string => REMEDIES[code ?? ''] ?? otherwise;

export class ReadError extends RunError {
  /** @param code of the system's error */
  constructor(
    readonly file: string,
    readonly offset: number,
    reason: string,
    readonly code?: string,
  ) {
    super(
      `Reading ${file} at byte ${offset} failed: ${reason}. ${remedyFor(code, 'Was it changed or moved during the run?')}`,
    );
  }
}

/** Parts of the result may be of the old content, others of the new. */
export class SourceChangedError extends RunError {
  constructor(
    readonly file: string,
    what: string,
  ) {
    super(
      `${file} changed while it was being read (${what}), so nothing of this run can be trusted. Run the command again once it is left alone.`,
    );
  }
}

export class WriteError extends RunError {
  /** @param code of the system's error */
  constructor(
    readonly file: string,
    reason: string,
    readonly code?: string,
  ) {
    super(
      `Writing ${file} failed: ${reason}. Nothing that could be taken for a whole result was left. ${remedyFor(code, 'Put that right, then run the command again.')}`,
    );
  }
}

export class OverflowError extends RunError {
  constructor(
    readonly tensor: string,
    readonly dtype: string,
  ) {
    super(`Tensor "${tensor}" does not fit ${dtype}: a value is too large. Use --dtype bfloat16.`);
  }
}

export class DivergedError extends RunError {
  constructor(
    readonly group: string,
    readonly step: number,
  ) {
    super(`The fit of ${group} did not stay finite at step ${step}. Lower --learning-rate.`);
  }
}

export class EngineRunError extends RunError {
  constructor(
    readonly engine: string,
    readonly device: string,
    readonly reason: string,
  ) {
    super(
      `Engine ${engine} failed on ${device}: ${reason}\nIf the device's memory is full, lower --batch-experts or use --engine onnx-cpu.`,
    );
  }
}

export class CompilationError extends RunError {
  constructor(
    readonly command: string,
    output: string,
  ) {
    super(
      `The compiler failed:\n${output.trimEnd()}\nThe command was: ${command}\nIt must be a C++17 compiler (name another in CXX) and the wheel must be for this machine's processor.`,
    );
  }
}

export class LinkedTensorflowError extends RunError {
  constructor(
    readonly addon: string,
    reason: string,
  ) {
    super(
      `${addon} was built but does not work: ${reason.trimEnd()}\nTry another TensorFlow wheel: "pip install --force-reinstall tensorflow", then link again.`,
    );
  }
}

export class WorkerError extends RunError {
  constructor(reason: string) {
    super(`The compute worker stopped: ${reason}`);
  }
}

export class IncompleteOutputError extends RunError {
  constructor(
    readonly tensor: string,
    readonly written: number,
    readonly expected: number,
  ) {
    super(
      `Only ${written} of ${expected} bytes of "${tensor}" were written. This is a defect in mobe: please report it.`,
    );
  }
}

export class VerificationError extends RunError {
  constructor(readonly problems: readonly string[]) {
    super(`The output is not what it should be:\n${problems.map((problem) => `  - ${problem}`).join('\n')}`);
  }
}

export class InterruptedError extends RunError {
  constructor() {
    super('Interrupted. Nothing unfinished was put under its final name.');
  }
}

// ---- other machines ----------------------------------------------------------------------------------------------

export class TokenError extends InputError {
  constructor(
    readonly source: string,
    reason: string,
  ) {
    super(`The token in ${source} cannot be used: ${reason}. Make one with "openssl rand -hex 32".`);
  }
}

export class TokenRequiredError extends InputError {
  constructor(readonly host: string) {
    super(
      `Listening on ${host} would let others in without a token. Give one with --token-file or MOBE_TOKEN, or listen on 127.0.0.1.`,
    );
  }
}

export class ListenError extends InputError {
  constructor(
    readonly address: string,
    reason: string,
  ) {
    super(`Cannot listen on ${address}: ${reason}. Choose another host or port with --listen.`);
  }
}

export class PeerUrlError extends InputError {
  constructor(
    readonly url: string,
    reason: string,
  ) {
    super(`${url} is not the address of a peer: ${reason}. It looks like ws://host:port/ or wss://host:port/.`);
  }
}

export class UnauthorisedError extends InputError {
  constructor(readonly peer: string) {
    super(`${peer} does not accept the token. Give the same one on both sides, with --token-file or MOBE_TOKEN.`);
  }
}

export class CertificateError extends InputError {
  constructor(
    readonly peer: string,
    reason: string,
  ) {
    super(`The certificate of ${peer} is not trusted: ${reason}. Name the one to trust with --ca.`);
  }
}

export class ProtocolVersionError extends InputError {
  constructor(
    readonly peer: string,
    readonly theirs: number,
    readonly ours: number,
  ) {
    super(`${peer} speaks version ${theirs} of the protocol, this program version ${ours}. Use the same mobe on both.`);
  }
}

export class WrongServiceError extends InputError {
  constructor(
    readonly peer: string,
    readonly theirs: string,
    readonly ours: string,
  ) {
    super(`${peer} is for "${theirs}", not for "${ours}". Check the address.`);
  }
}

export class BusyError extends RunError {
  constructor(readonly folder: string) {
    super(`${folder} is being written by another conversion. Wait for it, or receive in another folder.`);
  }
}

export class UnlikeWorkersError extends InputError {
  constructor(
    readonly first: string,
    firstEngine: string,
    readonly other: string,
    otherEngine: string,
  ) {
    super(
      `${first} runs on ${firstEngine}, ${other} on ${otherEngine}: the result would depend on who fitted what. Start all workers with the same --engine.`,
    );
  }
}

/** Something went wrong between this program and another, or in the other. */
export abstract class PeerError extends RunError {
  abstract readonly peer: string;
}

export class UnreachablePeerError extends PeerError {
  constructor(
    readonly peer: string,
    readonly seconds: number,
    reason: string,
  ) {
    super(
      `${peer} cannot be reached (tried for ${Math.round(seconds)} s): ${reason}. Is it running, and is the address right?`,
    );
  }
}

/** The connection broke and did not come back, or the peer ended it early. */
export class PeerLostError extends PeerError {
  constructor(
    readonly peer: string,
    reason: string,
  ) {
    super(`The connection to ${peer} was lost: ${reason}. Check that machine, then run the command again.`);
  }
}

/** The peer was connected and sent nothing, not even heartbeats. */
export class PeerTimeoutError extends PeerError {
  constructor(
    readonly peer: string,
    readonly seconds: number,
  ) {
    super(`${peer} sent nothing for ${seconds} s. Check that machine, then run the command again.`);
  }
}

/** The peer was stopped, or answers but no longer knows what was going on: a new conversation may work. */
export class SessionLostError extends PeerError {
  constructor(readonly peer: string) {
    super(
      `${peer} no longer knows this session: it was stopped or restarted, or has waited too long. Run the command again.`,
    );
  }
}

/** The peer sent what the protocol does not allow. */
export class ProtocolError extends PeerError {
  constructor(
    readonly peer: string,
    reason: string,
  ) {
    super(`${peer} broke the protocol: ${reason}. Use the same mobe on both sides; if they are, please report this.`);
  }
}

/** The peer sent more than its credit. */
export class FloodError extends PeerError {
  constructor(
    readonly peer: string,
    readonly held: number,
    readonly credit: number,
  ) {
    super(`${peer} has ${held} bytes unanswered with a credit of ${credit}. Use the same mobe on both sides.`);
  }
}

/** A group was fitted again after its worker was lost, and came out otherwise. */
export class UnlikeFitsError extends RunError {
  constructor(
    readonly group: string,
    readonly worker: string,
  ) {
    super(
      `A worker was lost while ${group} was written, and ${worker} computes it otherwise: the machines' processors round differently. Run the command again, with workers that are alike.`,
    );
  }
}

export class StreamWriteError extends RunError {
  constructor(reason: string) {
    super(`Writing the stream failed: ${reason}. Did the program that reads it end?`);
  }
}

/** A stream or a conversation ended before it said so. */
export class TruncatedStreamError extends PeerError {
  constructor(readonly peer: string) {
    super(`The stream from ${peer} ends too early. Was the other side interrupted? Start it again.`);
  }
}

export class ChecksumError extends PeerError {
  constructor(
    readonly peer: string,
    readonly tensor: string,
  ) {
    super(`Tensor "${tensor}" from ${peer} was damaged on the way: its checksum is wrong. Run the command again.`);
  }
}

/** What the peer reports of itself. `remoteName` is the name of its error, where it has one. */
export class RemoteError extends PeerError {
  constructor(
    readonly peer: string,
    readonly remoteName: string,
    readonly remoteMessage: string,
  ) {
    super(`${peer} failed (${remoteName}): ${remoteMessage}`);
  }
}

export class RemoteChangedError extends PeerError {
  constructor(readonly peer: string) {
    super(`The files that ${peer} offers changed during the run. Run the command again.`);
  }
}

/** Bytes that are not a frame, or a frame that no peer would accept. */
export class InvalidFrameError extends RunError {
  /** @param protocol of a hello that speaks another version, whatever else it says */
  constructor(
    readonly reason: string,
    readonly protocol?: number,
  ) {
    super(`A frame is invalid: ${reason}.`);
  }
}

// ---- misuse of the library ---------------------------------------------------------------------------------------

/** Shapes or names of a traced program do not fit. */
export class GraphError extends RunError {}

/** An engine was fed something it cannot run. */
export class EngineError extends RunError {}

// ---- measurements ------------------------------------------------------------------------------------------------

export class MeasurementError extends RunError {
  constructor(
    readonly measurement: string,
    reason: string,
  ) {
    super(`Measuring "${measurement}" failed: ${reason.replace(/\.$/, '')}.`);
  }
}
