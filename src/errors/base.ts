/**
 * Base of all errors that a user can cause. There is one class for each failure. `exitCode` is 2 if the input or the flags are
 * wrong and nothing was started, and 1 if a run failed. It belongs to the class, so an error from a thread or another machine
 * (`reviveError`) has it too. A message names what failed and where, then the remedy.
 */
export abstract class MobeError extends Error {
  get exitCode(): 1 | 2 {
    return 1;
  }
  /** The output folder, if it keeps finished parts with which the same command can continue. */
  declare kept?: string;
  override get name(): string {
    return this.constructor.name;
  }
}

/** The input or the flags are wrong. The error is found before work begins. */
export abstract class InputError extends MobeError {
  override get exitCode(): 2 {
    return 2;
  }
}

/** The failure happened after work had begun. */
export abstract class RunError extends MobeError {}
