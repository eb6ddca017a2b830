/** Works for a farm: takes jobs from the queue and fits them, until it is closed. */
import { hostname, totalmem } from 'node:os';
import type { Job, Worker } from 'bullmq';
import { chooseEngine, type EngineChoice } from '../../src/engine/choose-engine.js';
import {
  BudgetTooSmallError,
  DiskTooSmallError,
  EngineRunError,
  EngineUnavailableError,
  FolderLockedError,
  InterruptedError,
  OutputNotWritableError,
  WriteError,
} from '../../src/errors.js';
import { formatSeconds } from '../../src/format.js';
import type { FitStep } from '../../src/methods/method.js';
import { engineQueue, getRun, type JobData, type JobProgress, type JobResult, jobData } from './farm-run.js';
import { FitProcess, NotBegunError } from './fit-process.js';
import { KEY_PREFIX, openQueue } from './redis.js';

/** Options of a farm's worker. */
export interface FarmWorkerOptions {
  /** The queue's address, with its password. */
  readonly queue: string;
  readonly engine?: EngineChoice;
  /** Groups that are fitted at once, each in a process; default: 1. */
  readonly jobs?: number;
  /** Memory of all fits together, in bytes; default: 80 % of the machine's. */
  readonly maxMemory?: number;
  /** Seconds after which the jobs of a worker that vanished go to others. */
  readonly lockSeconds?: number;
  /** Seconds between two saves of a fit's state. */
  readonly saveEvery?: number | undefined;
  /** Token and certificates for sources at ws:// and wss://. */
  readonly token?: string | undefined;
  readonly ca?: Buffer | undefined;
}

/** An event of a worker. */
export type FarmEvent =
  | { readonly event: 'ready'; readonly engine: string; readonly device: string; readonly queue: string }
  | { readonly event: 'queue'; readonly message: string }
  | { readonly event: 'began' | 'stopped'; readonly group: string; readonly run: string }
  | ({ readonly event: 'fitted'; readonly group: string; readonly run: string } & JobResult)
  | {
      readonly event: 'failed';
      readonly group: string;
      readonly run: string;
      readonly attempt: number;
      readonly reason: string;
    };

/** A worker that runs. */
export interface FarmWorker {
  /** Rejects if this machine cannot work: its memory or disk is too small, or it does not see the source or the shared folder. */
  readonly broken: Promise<never>;
  /** Saves the states of running fits, gives their jobs back, and ends. */
  close(): Promise<void>;
}

const LOCK_SECONDS = 120;
/** A job is not given up because its machines were pre-empted. BullMQ's default of 1 would. */
const MOST_STALLS = 100;
const PROGRESS_INTERVAL_MS = 2_000;
/** A job that was given back by a machine that cannot fit waits so long, for others to take it. */
const GIVE_BACK_MS = 1_000;

/** Errors of a fit whose cause is the machine. Another one may do the same job. */
const MACHINE_ERRORS = [
  BudgetTooSmallError,
  DiskTooSmallError,
  EngineRunError,
  EngineUnavailableError,
  FolderLockedError,
  OutputNotWritableError,
  WriteError,
];

/**
 * Starts a worker. It fits one job at a time, or `jobs`, and renews their locks meanwhile. Throws as `openQueue` does, and
 * `EngineUnavailableError`.
 */
export async function workForFarm(
  options: FarmWorkerOptions,
  onEvent: (event: FarmEvent) => void,
): Promise<FarmWorker> {
  const {
    jobs = 1,
    maxMemory = Math.floor(0.8 * totalmem()),
    lockSeconds = LOCK_SECONDS,
    saveEvery,
    token,
    ca,
  } = options;
  const { name: engine, device } = await chooseEngine(options.engine ?? 'auto', 1);
  const queue = await openQueue(options.queue, { onQueue: (message) => onEvent({ event: 'queue', message }) });
  const limits = { maxMemory: Math.floor(maxMemory / jobs), saveEvery, token, ca };
  const free = Array.from({ length: jobs }, () => new FitProcess(limits));
  const all = [...free];
  const closing = new AbortController();
  let breakDown: (error: Error) => void = () => {};
  const broken = new Promise<never>((_, reject) => {
    breakDown = reject;
  });
  broken.catch(() => {}); // the caller may not wait for it
  const host = hostname();

  const fitJob = async (job: Job<JobData>, lost: AbortSignal): Promise<JobResult> => {
    const data = jobData.parse(job.data);
    const run = await getRun(queue, data.run);
    if (!run) throw new queue.bull.UnrecoverableError('its run was removed from the queue');
    const about = { group: data.label, run: run.id };
    const process = free.pop() as FitProcess; // there are as many as jobs at once
    try {
      onEvent({ event: 'began', ...about });
      const onStep = progressTeller(job, host);
      const done = await process.fit(run, data, AbortSignal.any([lost, closing.signal]), onStep);
      const result = { host, device: done.device, seconds: done.seconds, already: done.already };
      onEvent({ event: 'fitted', ...about, ...result });
      return result;
    } catch (error) {
      if (error instanceof InterruptedError) onEvent({ event: 'stopped', ...about });
      else onEvent({ event: 'failed', ...about, attempt: job.attemptsMade + 1, reason: (error as Error).message });
      throw error;
    } finally {
      free.push(process);
    }
  };

  const worker: Worker<JobData, JobResult> = new queue.bull.Worker(
    engineQueue(engine),
    async (job: Job<JobData>, jobToken, lost = new AbortController().signal) => {
      try {
        return await fitJob(job, lost);
      } catch (error) {
        const own = machineError(error as Error);
        if (own) breakDown(own);
        else if (!closing.signal.aborted || !(error instanceof InterruptedError)) throw error;
        // The machine stops: another one takes the job, and this was none of its tries.
        await job.moveToDelayed(Date.now() + (own ? GIVE_BACK_MS : 0), jobToken);
        throw new queue.bull.DelayedError();
      }
    },
    {
      connection: queue.redis,
      prefix: KEY_PREFIX,
      concurrency: jobs,
      lockDuration: 1000 * lockSeconds,
      stalledInterval: 500 * lockSeconds,
      maxStalledCount: MOST_STALLS,
    },
  );
  worker.on('error', () => {}); // a lost connection is told of by openQueue, a lost lock below
  // Another worker has the job by now.
  worker.on('lockRenewalFailed', (ids) => {
    for (const id of ids) worker.cancelJob(id);
  });
  onEvent({ event: 'ready', engine, device, queue: queue.name });
  return {
    broken,
    async close() {
      closing.abort();
      await worker.close();
      await Promise.all(all.map((process) => process.close()));
      await queue.close();
    },
  };
}

/** The error of the machine, if it is one. */
function machineError(error: Error): Error | undefined {
  if (error instanceof NotBegunError) return error.cause;
  return MACHINE_ERRORS.some((kind) => error instanceof kind) ? error : undefined;
}

/** Puts a fit's steps into the queue for `mobe farm status`, at most one at a time. */
function progressTeller(job: Job<JobData>, host: string): (step: FitStep) => void {
  let last = Number.NEGATIVE_INFINITY;
  let telling = false;
  const tell = (progress: JobProgress): void => {
    telling = true;
    job
      .updateProgress(progress)
      .catch(() => {}) // the job was taken away, which the renewal of its lock finds
      .finally(() => {
        telling = false;
      });
  };
  tell({ host });
  return ({ step, steps, loss, secondsLeft }) => {
    const now = performance.now();
    if (telling || now - last < PROGRESS_INTERVAL_MS) return;
    last = now;
    tell({ host, step, steps, loss, secondsLeft });
  };
}

/** An event as a sentence. */
export function describeEvent(event: FarmEvent): string {
  switch (event.event) {
    case 'ready':
      return `working with ${event.engine} on ${event.device} for the queue ${event.queue} (Ctrl-C ends it)`;
    case 'queue':
      return event.message;
    case 'began':
      return `${event.group} of run ${event.run}`;
    case 'stopped':
      return `${event.group}: its state is saved as far as it went, and others may go on`;
    case 'fitted':
      return event.already
        ? `${event.group}: its factors were there already`
        : `${event.group}: fitted in ${formatSeconds(event.seconds)}`;
    case 'failed':
      return `${event.group}: try ${event.attempt} failed: ${event.reason}`;
  }
}
