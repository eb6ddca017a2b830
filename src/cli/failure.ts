import { InterruptedError, MobeError } from '../errors.js';
import { printable } from '../format.js';
import { isPath, schemeOf } from '../location.js';

function howToGoOn(out: string): string {
  const place = isPath(out)
    ? `in ${out}:`
    : /^wss?$/.test(schemeOf(out) ?? '')
      ? `at ${out}: once "mobe receive" listens there for the same folder,`
      : `for ${out}, there and on this machine:`;
  return `Finished work is kept ${place} run the same command again to resume.\n`;
}

/** Prints on stderr why a command failed. Returns the exit code. */
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
  // An unexpected error. A bug report needs its stack.
  process.stderr.write(`${printable((error as Error).stack ?? String(error))}\n`);
  return 1;
}
