/** Errors in options, plans and outputs. */
import { formatBytes } from '../format.js';
import { InputError, RunError } from './base.js';

/** An option has a value that is not allowed. `option` is its flag. */
export class OptionError extends InputError {
  constructor(
    readonly option: string,
    reason: string,
  ) {
    super(`${option}: ${reason}`);
  }
}

/** The factors would have at least as many parameters as the experts. */
export class NotSmallerError extends InputError {
  constructor(
    readonly before: number,
    readonly after: number,
    remedy: string,
    /** One of the experts' tensors. */
    readonly example: { readonly name: string; readonly rows: number; readonly cols: number },
  ) {
    super(
      `The factors would hold ${after} parameters, the experts they replace ${before}: nothing would become smaller (experts like ${example.name}, ${example.rows} × ${example.cols}). ${remedy}`,
    );
  }
}

/** The output would have more bytes than its source. */
export class LargerOutputError extends InputError {}

/** `--max-memory` is below the smallest budget that works. */
export class BudgetTooSmallError extends InputError {
  /** A value for `--max-memory`: whole MiB, so that it is never below `smallestBytes`. */
  readonly smallest: string;
  readonly smallestBytes: number;

  /** @param groups the number of `--groups` with which this budget would do, if there is one */
  constructor(budgetBytes: number, smallestBytes: number, groups?: number) {
    const smallest = `${Math.ceil(smallestBytes / 2 ** 20)}MiB`;
    super(
      `--max-memory ${formatBytes(budgetBytes)} is too small for this run: the smallest that works is ${smallest}.${groups === undefined ? '' : ` With --groups ${groups}, which divides the experts among more and smaller fits, this budget does.`}`,
    );
    this.smallest = smallest;
    this.smallestBytes = Math.ceil(smallestBytes);
  }
}

/**
 * An error that tells of a part of a memory budget, as one that tells of the whole. Other errors are left as they are.
 * @param wholeOf bytes of the part → bytes of the whole
 */
export const inWhole = (error: unknown, wholeBytes: number, wholeOf: (partBytes: number) => number): unknown =>
  error instanceof BudgetTooSmallError ? new BudgetTooSmallError(wholeBytes, wholeOf(error.smallestBytes)) : error;

/** The output folder is the input, or lies in it. */
export class OutputInsideInputError extends InputError {
  constructor(
    readonly output: string,
    readonly input: string,
  ) {
    super(`The output ${output} is the input ${input} or lies inside it. Choose a folder outside.`);
  }
}

/** The output folder already holds something. */
export class OutputNotEmptyError extends InputError {
  constructor(
    readonly folder: string,
    what: string,
    forced = false,
  ) {
    super(
      forced
        ? `${folder} ${what}, which --force does not remove. Choose another folder.`
        : `${folder} ${what}. Choose another folder, or replace it with --force.`,
    );
  }
}

/** The folder holds an interrupted run with other settings. */
export class UnfinishedRunError extends InputError {
  constructor(
    readonly folder: string,
    readonly difference: string,
  ) {
    super(
      `${folder} holds an unfinished run that differs from this one (${difference}). Run that command again to finish it, or start over with --force.`,
    );
  }
}

/** Another process writes into the output folder. */
export class FolderLockedError extends InputError {
  constructor(
    readonly folder: string,
    who: string,
    remedy: string,
  ) {
    super(`${folder} is being written ${who}. ${remedy}`);
  }
}

/** The output folder cannot be written. */
export class OutputNotWritableError extends InputError {
  constructor(
    readonly folder: string,
    reason: string,
  ) {
    super(`${folder} cannot be written: ${reason}. Check its owner and permissions, or choose another folder.`);
  }
}

/** The disk has too little free space. */
export class DiskTooSmallError extends InputError {
  constructor(
    readonly folder: string,
    readonly needed: string,
    readonly free: string,
  ) {
    super(`${folder} has ${free} free; this run writes ${needed}. Free some space or choose another disk.`);
  }
}

/** Factors differ between layers in a way that a native checkpoint cannot hold. */
export class UnevenFactorsError extends InputError {
  constructor(what: string) {
    super(
      `A native checkpoint has all parts of a projection, with the same sizes, and the same names of experts in all its layers: ${what}. Fit what is missing, or write --format hf.`,
    );
  }
}

/** A factor file of the reference implementation does not fit the model. */
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

/** A factor file does not fit the model or the other files. */
export class FactorMismatchError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: ${reason}. Run "mobe fit" for this model again.`);
  }
}

/** A result was not made from the given model. */
export class OtherResultError extends InputError {
  constructor(
    readonly folder: string,
    reason = 'the fingerprint of its source differs',
  ) {
    super(`${folder} was made from another model: ${reason}. Give the model that it was made from.`);
  }
}

/** An engine does not start on this machine. */
export class EngineUnavailableError extends InputError {
  constructor(
    readonly engine: string,
    readonly reason: string,
  ) {
    super(`Engine ${engine} cannot be used here: ${reason.replace(/\.$/, '')}.`);
  }
}

/** TF32 was asked for, and the engine does not have it. */
export class PrecisionError extends InputError {
  constructor(
    readonly engine: string,
    readonly device: string,
    /** Whether the engine has it where the environment does not forbid it. */
    readonly forbidden: boolean,
  ) {
    super(
      forbidden
        ? `--precision tf32: NVIDIA_TF32_OVERRIDE=0 forbids TF32 to ${engine} in this process. Unset it and start again, or use --precision f32.`
        : `--precision tf32: ${engine} on ${device} multiplies in f32 alone. Use --precision f32, or an engine that has TF32 ("mobe engines" lists it).`,
    );
  }
}

/** A tensor is larger than the device allows. */
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

/** The folder given to `--link-tensorflow` lacks a file of TensorFlow. */
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

/** A feature does not exist on this operating system. */
export class UnsupportedPlatformError extends InputError {
  constructor(
    readonly feature: string,
    readonly platform: string,
    remedy: string,
  ) {
    super(`${feature} does not work on ${platform}. ${remedy}`);
  }
}

/** The C++ compiler cannot be started. */
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

/** Slices of a fit (`mobe fit --shard`) have not written all of their factor files. */
export class MissingSlicesError extends InputError {
  /** @param total the factor files of all slices */
  constructor(
    readonly folder: string,
    readonly missing: ReadonlyArray<{ readonly slice: string; readonly files: readonly string[] }>,
    total: number,
  ) {
    const count = missing.reduce((sum, { files }) => sum + files.length, 0);
    const [first] = missing as [(typeof missing)[0]];
    const few = <T>(all: readonly T[], text: (it: T) => string, most: number): string =>
      all.slice(0, most).map(text).join(', ') + (all.length > most ? ` and ${all.length - most} more` : '');
    super(
      `${folder} lacks ${count} of the ${total} factor files of its slices: ${few(missing, ({ slice, files }) => `slice ${slice} (${few(files, String, 3)})`, 4)}. Wait until these slices have ended, or run them again: "mobe fit --shard ${first.slice}" with the arguments of the others.`,
    );
  }
}

/** A manifest cannot be read or was changed. */
export class DamagedManifestError extends InputError {
  constructor(
    readonly file: string,
    reason: string,
  ) {
    super(`${file}: ${reason}. What it lists cannot be checked: copy the result again.`);
  }
}

/** A measurement of `mobe bench` failed. */
export class MeasurementError extends RunError {
  constructor(
    readonly measurement: string,
    reason: string,
  ) {
    super(`Measuring "${measurement}" failed: ${reason.replace(/\.$/, '')}.`);
  }
}
