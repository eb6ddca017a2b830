import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { fileURLToPath } from 'node:url';
import { FitProcessError, InterruptedError } from '../../src/errors.js';
import type { FitStep } from '../../src/methods/method.js';
import { reviveError } from '../compute/revive-error.js';
import { StallWatch } from '../compute/stall-watch.js';
import type { FarmRun, JobData } from './farm-run.js';
import { type FitLimits, type FromFit, STOP_WITHIN_MS, type ToFit } from './fit-messages.js';

const ENTRY = fileURLToPath(new URL('./fit-process-entry.js', import.meta.url));

/** A fit that ended. */
export type FinishedFit = Extract<FromFit, { kind: 'done' }>;

/** The fit had not begun when it failed: the cause is this machine, not the group. */
export class NotBegunError extends Error {
  constructor(override readonly cause: Error) {
    super(cause.message);
  }
}

/**
 * Fits in a process of its own, so that the worker's process is always free to renew locks, and lives on if a runtime crashes. The
 * process is started at the first fit, and again after it has ended.
 */
export class FitProcess {
  private child: ChildProcess | undefined;

  constructor(private readonly limits: FitLimits) {}

  /**
   * Fits the groups of a job. Aborting `signal` saves the fit's state and rejects with `InterruptedError`. Otherwise throws the error of
   * the fit, in a `NotBegunError` if it is of the machine, and `FitProcessError` if the process dies or hangs.
   */
  async fit(run: FarmRun, job: JobData, signal: AbortSignal, onStep: (step: FitStep) => void): Promise<FinishedFit> {
    if (signal.aborted) throw new InterruptedError();
    const child = this.start();
    return new Promise<FinishedFit>((resolve, reject) => {
      const fail = (error: Error): void => {
        child.kill('SIGKILL');
        settle(() => reject(error));
      };
      const watch = new StallWatch(
        { peer: job.label, fail: (error) => fail(new FitProcessError(job.label, `hung: ${error.message}`)) },
        {},
      );
      let seen = (): void => {};
      let end = (): void => {};
      void watch.over(async (told) => {
        seen = told;
        await new Promise<void>((ended) => {
          end = ended;
        });
      });
      const settle = (answer: () => void): void => {
        end();
        child.off('message', onMessage).off('exit', onExit);
        signal.removeEventListener('abort', onAbort);
        answer();
      };
      const onMessage = (message: FromFit): void => {
        seen();
        if (message.kind === 'step') onStep(message.step);
        else if (message.kind === 'done') settle(() => resolve(message));
        else if (message.kind === 'failed') settle(() => reject(errorOf(message)));
      };
      const onExit = (code: number | null, killedBy: NodeJS.Signals | null): void =>
        settle(() =>
          reject(
            signal.aborted ? new InterruptedError() : new FitProcessError(job.label, `ended (${killedBy ?? code})`),
          ),
        );
      const onAbort = (): void => {
        send(child, { kind: 'stop' });
        setTimeout(() => child.kill('SIGKILL'), STOP_WITHIN_MS).unref();
      };
      child.on('message', onMessage).on('exit', onExit);
      signal.addEventListener('abort', onAbort);
      send(child, { kind: 'fit', run, groups: job.groups, limits: this.limits });
    });
  }

  private start(): ChildProcess {
    if (this.child?.connected) return this.child;
    const child = fork(ENTRY, {
      stdio: ['ignore', 'ignore', 'inherit', 'ipc'],
      serialization: 'advanced',
      execArgv: [],
    });
    child.on('error', () => {}); // followed by "exit"
    this.child = child;
    return child;
  }

  async close(): Promise<void> {
    if (this.child) await killProcess(this.child); // nothing runs in it: fits were ended before
  }
}

/** Kills a process, and waits until it has ended. */
export async function killProcess(child: ChildProcess): Promise<void> {
  if (child.exitCode !== null || child.signalCode !== null) return;
  const ended = once(child, 'exit');
  child.kill('SIGKILL');
  await ended;
}

const send = (child: ChildProcess, message: ToFit): void => {
  if (child.connected) child.send(message, () => {}); // if it has ended, "exit" tells
};

function errorOf({ name, message, planning }: Extract<FromFit, { kind: 'failed' }>): Error {
  const error = reviveError({ name, message }) ?? new Error(`${name}: ${message}`);
  return planning ? new NotBegunError(error) : error;
}
