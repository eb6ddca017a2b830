/**
 * Every failure a user can cause, one class each. `exitCode` tells the two kinds apart: 2, the input or the flags are
 * wrong and nothing was started; 1, it failed while running. It is the class's, so an error that came from a thread or another
 * machine (`reviveError`) has it too. A message names what failed and where, then what to do.
 */
export abstract class MobeError extends Error {
  get exitCode(): 1 | 2 {
    return 1;
  }
  /** The output folder, where it keeps what was finished so that the same command can go on. */
  declare kept?: string;
  override get name(): string {
    return this.constructor.name;
  }
}

/** The input or the flags are wrong; found before any work. */
export abstract class InputError extends MobeError {
  override get exitCode(): 2 {
    return 2;
  }
}

/** Work had begun. */
export abstract class RunError extends MobeError {}
