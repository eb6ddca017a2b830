/** Errors of a run. */
import { RunError } from './base.js';

/** Remedies for the common errors of file systems. */
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

/** A file cannot be read at an offset. */
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

/** A source file changed during the run, so the result may mix old and new content. */
export class SourceChangedError extends RunError {
  constructor(
    readonly file: string,
    what: string,
  ) {
    super(
      `${file} changed while it was being read (${what}), so the result of this run would be wrong. Run the command again when no other program changes the file.`,
    );
  }
}

/** A file cannot be written. */
export class WriteError extends RunError {
  /** @param code of the system's error */
  constructor(
    readonly file: string,
    reason: string,
    readonly code?: string,
  ) {
    super(
      `Writing ${file} failed: ${reason}. Nothing is left that looks like a complete result. ${remedyFor(code, 'Fix this, then run the command again.')}`,
    );
  }
}

/** A value is too large for the dtype or the encoding of the output, or not a number. */
export class OverflowError extends RunError {
  /** @param dtype the dtype, or the encoding in words */
  constructor(
    readonly tensor: string,
    readonly dtype: string,
  ) {
    const remedy =
      dtype === 'F16'
        ? 'Use --dtype bfloat16'
        : /^B?F\d+$/.test(dtype)
          ? 'Look for damaged weights with "mobe inspect --check"'
          : 'Use --dtype bfloat16, and no --keep-quantized; or look for damaged weights with "mobe inspect --check"';
    super(`Tensor "${tensor}" does not fit ${dtype}: a value is too large, or not a number. ${remedy}.`);
  }
}

/** A fit produced NaN or infinite numbers. */
export class DivergedError extends RunError {
  constructor(
    readonly group: string,
    readonly step: number,
    precision?: 'f32' | 'tf32' | undefined,
  ) {
    const lower = precision === 'tf32' ? 'Use --precision f32, or lower --learning-rate' : 'Lower --learning-rate';
    const remedy =
      step === 0 && precision !== 'tf32'
        ? 'Weights are too large for sums of squares in float32: look for damaged ones, or leave the layer out with --layers'
        : lower;
    super(`The fit of ${group} did not stay finite at step ${step}. ${remedy}.`);
  }
}

/** A layer of a model produced NaN or infinite numbers, or only zeros. */
export class NonFiniteActivationError extends RunError {
  constructor(readonly layer: number) {
    super(
      `The hidden states after layer ${layer} are not finite, or all 0. Look for damaged weights with "mobe verify", or try --engine onnx-cpu.`,
    );
  }
}

/** A program's own stage dropped a group, and the output holds factors only. */
export class DroppedGroupError extends RunError {
  constructor(readonly group: string) {
    super(
      `A stage of the program's own dropped ${group}, and an output of factors has no place for its weights. Convert to standard weights (format "hf"), which keeps them as they are; or leave the group out with the options "layers" and "projections".`,
    );
  }
}

/** An engine's runtime failed during a computation. */
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

/** The C++ compiler reported errors. */
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

/** The TensorFlow addon was built but does not load. */
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

/** A compute thread ended unexpectedly. */
export class WorkerError extends RunError {
  constructor(reason: string) {
    super(`The compute worker stopped: ${reason}`);
  }
}

/** A tensor was not written completely. This is a defect of this program. */
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

/** The output differs from what it should be. `problems` lists the differences. */
export class VerificationError extends RunError {
  constructor(readonly problems: readonly string[]) {
    super(`The output is not what it should be:\n${problems.map((problem) => `  - ${problem}`).join('\n')}`);
  }
}

/** The run was stopped by a signal. */
export class InterruptedError extends RunError {
  constructor() {
    super('Interrupted. No incomplete file got its final name.');
  }
}

/** Shapes or names in a traced program do not fit. */
export class GraphError extends RunError {}

/** An engine got an input that it cannot run. */
export class EngineError extends RunError {}
