#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { InterruptedError, MobeError } from '../errors.js';
import { printable } from '../format.js';
import { isPath } from '../location.js';
import { VERSION } from '../version.js';
import { benchCommand } from './bench.js';
import { compressCommand } from './compress.js';
import { enginesCommand } from './engines.js';
import { evalCommand } from './eval.js';
import { expandCommand } from './expand.js';
import { exportCommand } from './export.js';
import { fitCommand } from './fit.js';
import { generateCommand } from './generate.js';
import { importCommand } from './import.js';
import { inspectCommand } from './inspect.js';
import { planCommand } from './plan.js';
import { receiveCommand } from './receive.js';
import { reportCommand } from './report.js';
import { serveCommand } from './serve.js';
import { streamCommand } from './stream.js';
import { verifyCommand } from './verify.js';
import { workerCommand } from './worker.js';

const program = new Command('mobe')
  .description(
    'Makes Mixture-of-Experts checkpoints smaller by the MoBE factorisation (arXiv 2508.05257), as a stream:\nmemory stays within --max-memory however large the model is.',
  )
  .version(VERSION)
  .addHelpText(
    'after',
    `
Start with
  mobe inspect <model>             what is in a checkpoint
  mobe plan <model>                what a compression would do, and how long it would take
  mobe compress <model> <out>      do it
  mobe generate <model> --prompt … what the compressed model says
  mobe engines                     what can run the arithmetic here, and how fast

Results go to stdout, progress to stderr; --json prints one JSON object instead of a table.
Exit codes: 0 done, 1 failed while running, 2 wrong use or wrong input, 130 interrupted.`,
  )
  .showHelpAfterError('(mobe --help, or mobe <command> --help, tells more)')
  .exitOverride();

for (const command of [
  inspectCommand,
  planCommand,
  compressCommand,
  fitCommand,
  exportCommand,
  importCommand,
  expandCommand,
  verifyCommand,
  reportCommand,
  generateCommand,
  evalCommand,
  enginesCommand,
  benchCommand,
  serveCommand,
  workerCommand,
  receiveCommand,
  streamCommand,
]) {
  program.addCommand(command().exitOverride().showHelpAfterError('(--help tells more)'));
}

try {
  await program.parseAsync();
} catch (error) {
  process.exitCode = reportFailure(error);
}

function howToGoOn(out: string): string {
  const place = isPath(out) ? `in ${out}:` : `at ${out}: once "mobe receive" listens there for the same folder,`;
  return `What was finished is kept ${place} run the same command again to go on from there.\n`;
}

function reportFailure(error: unknown): number {
  if (error instanceof CommanderError) return error.exitCode === 0 ? 0 : 2;
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
