import { InterruptedError, MobeError } from '../errors.js';
import { printable } from '../format.js';
import { isPath } from '../location.js';

function howToGoOn(out: string): string {
  const place = isPath(out) ? `in ${out}:` : `at ${out}: once "mobe receive" listens there for the same folder,`;
  return `What was finished is kept ${place} run the same command again to go on from there.\n`;
}

/** Tells people on stderr why a command failed. Returns the exit code. */
export function tellFailure(error: unknown): number {
  const kept = error instanceof MobeError && error.kept !== undefined ? howToGoOn(error.kept) : '';
  if (error instanceof InterruptedError) {
    process.stderr.write(`${error.message}\n${kept}`);
    return 130;
  }
  if (error instanceof MobeError) {
    process.stderr.write(`error: ${printable(error.message)}\n${kept}`);
    return error.exitCode;
  }
  // A failure nobody foresaw: the stack is what a bug report needs.
  process.stderr.write(`${printable((error as Error).stack ?? String(error))}\n`);
  return 1;
}
