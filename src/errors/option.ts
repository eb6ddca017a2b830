/** Errors in options, plans and outputs. */
import { InputError, RunError } from './base.js';

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

/** The folder holds an interrupted run with other settings. */
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

export class MeasurementError extends RunError {
  constructor(
    readonly measurement: string,
    reason: string,
  ) {
    super(`Measuring "${measurement}" failed: ${reason.replace(/\.$/, '')}.`);
  }
}
