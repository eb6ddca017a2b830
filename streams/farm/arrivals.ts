/** Waits for the factor files of a run, and looks after its jobs meanwhile. */
import { readdir } from 'node:fs/promises';
import { setTimeout as delay } from 'node:timers/promises';
import type { Queue } from 'bullmq';
import { factorFileName } from '../../src/conversion/factor-files.js';
import { type GroupPlan, groupLabel } from '../../src/conversion/group-plan.js';
import { FarmFailedError, InterruptedError, OutputNotWritableError } from '../../src/errors.js';
import { type FarmRun, type JobData, jobId, openJobs, putRun, removeRun } from './farm-run.js';
import type { FarmQueue } from './redis.js';

/** Groups that one job fits. */
export interface FarmUnit {
  readonly label: string;
  readonly groups: readonly GroupPlan[];
}

/** The groups of a job: one, or those of a layer. */
export const unitOf = (groups: readonly GroupPlan[]): FarmUnit => {
  const [first, ...others] = groups as [GroupPlan];
  return { label: others.length ? `layer ${first.layer}` : groupLabel(first), groups };
};

/** Options of `arrivals`. */
export interface ArrivalOptions {
  readonly queue: FarmQueue;
  readonly run: FarmRun;
  /** How often a job may fail. */
  readonly tries: number;
  readonly signal: AbortSignal;
  readonly onMessage: (sentence: string) => void;
}

const FILES_INTERVAL_MS = 500;
const JOBS_INTERVAL_MS = 2_000;
/** Jobs that are not in the queue any more are put there again this often, in case that Redis has lost them. */
const RENEW_INTERVAL_MS = 60_000;
const RETRY_PAUSE_MS = 2_000;
/** Jobs that one call adds or removes. */
const JOBS_AT_ONCE = 500;

const filesOf = ({ groups }: FarmUnit): string[] => groups.map(factorFileName);

/**
 * Yields each unit when its factor files are there. Puts jobs for the others into the queue. Failed jobs of an earlier call are tried
 * anew. While Redis is away, files still arrive. Throws `FarmFailedError` at the end if units failed, and `InterruptedError`.
 */
export async function* arrivals(units: readonly FarmUnit[], options: ArrivalOptions): AsyncGenerator<FarmUnit> {
  const { run, signal } = options;
  const waiting = new Map(units.map((unit) => [jobId(run.id, unit.label), unit] as const));
  const failed = new Map<string, string>();
  const over = new AbortController();
  const stop = AbortSignal.any([signal, over.signal]);
  let _minding: Promise<void> | undefined;
  try {
    for (;;) {
      if (signal.aborted) throw new InterruptedError();
      const held = new Set(await list(run.factors));
      const here = [...waiting].filter(([, unit]) => filesOf(unit).every((file) => held.has(file)));
      for (const [id, unit] of here) {
        waiting.delete(id);
        failed.delete(id);
        yield unit;
        if (signal.aborted) throw new InterruptedError();
      }
      if ([...waiting.keys()].every((id) => failed.has(id))) break;
      _minding ??= mindJobs(waiting, failed, { ...options, signal: stop });
      await delay(FILES_INTERVAL_MS, undefined, { signal }).catch(() => {});
    }
  } finally {
    over.abort();
  }
  if (failed.size)
    throw new FarmFailedError([...failed].map(([id, reason]) => ({ group: waiting.get(id)?.label ?? id, reason })));
}

async function list(folder: string): Promise<string[]> {
  try {
    return await readdir(folder);
  } catch (error) {
    throw new OutputNotWritableError(folder, String((error as NodeJS.ErrnoException).code));
  }
}

/** Puts the jobs of waiting units into the queue, and collects those that have failed. */
async function mindJobs(
  waiting: ReadonlyMap<string, FarmUnit>,
  failed: Map<string, string>,
  { queue, run, tries, signal, onMessage }: ArrivalOptions,
): Promise<void> {
  const jobs = openJobs(queue, run.engine);
  let renewed = Number.NEGATIVE_INFINITY;
  const finished = run.units - waiting.size; // those that are there already were yielded before
  let first = true;
  let lonely = false;
  const renew = (): void => {
    renewed = Number.NEGATIVE_INFINITY;
  };
  queue.redis.on('ready', renew);
  while (!signal.aborted) {
    try {
      if (performance.now() - renewed > RENEW_INTERVAL_MS) {
        renewed = performance.now();
        if (first) await removeEnded(jobs, run);
        first = false;
        await putRun(queue, { ...run, finished });
        await addJobs(
          jobs,
          run,
          [...waiting].filter(([id]) => !failed.has(id)),
          tries,
        );
      }
      await findFailed(jobs, waiting, failed);
      const alone = (await jobs.getWorkersCount()) === 0;
      if (alone && !lonely)
        onMessage(`No worker takes jobs for ${run.engine}: start "mobe farm work" on the machines that are to fit.`);
      lonely = alone;
      await delay(JOBS_INTERVAL_MS, undefined, { signal }).catch(() => {});
    } catch (error) {
      if (signal.aborted) break;
      onMessage(`The queue gave an error, and is asked again: ${(error as Error).message}`);
      await delay(RETRY_PAUSE_MS, undefined, { signal }).catch(() => {});
    }
  }
  queue.redis.off('ready', renew);
}

/**
 * Removes jobs that have ended. Failed ones are tried anew. Of finished ones the factors are counted as finished, or they are gone and
 * made anew.
 */
async function removeEnded(jobs: Queue<JobData>, { id: run }: FarmRun): Promise<void> {
  const ended = await jobs.getRanges(['failed', 'completed'], 0, -1);
  await removeJobs(
    jobs,
    ended.filter((id) => id.startsWith(`${run}-`)),
  );
}

async function removeJobs(jobs: Queue<JobData>, ids: readonly string[]): Promise<void> {
  for (let from = 0; from < ids.length; from += JOBS_AT_ONCE)
    await Promise.all(ids.slice(from, from + JOBS_AT_ONCE).map((id) => jobs.remove(id)));
}

/** Adds jobs. Those that are in the queue stay as they are. */
export async function addJobs(
  jobs: Queue<JobData>,
  run: FarmRun,
  units: ReadonlyArray<readonly [string, FarmUnit]>,
  tries: number,
): Promise<void> {
  const opts = { attempts: tries, backoff: { type: 'fixed', delay: RETRY_PAUSE_MS } };
  for (let from = 0; from < units.length; from += JOBS_AT_ONCE)
    await jobs.addBulk(
      units.slice(from, from + JOBS_AT_ONCE).map(([id, { label, groups }]) => ({
        name: 'fit',
        data: { run: run.id, label, groups: groups.map(groupLabel) },
        opts: { ...opts, jobId: id },
      })),
    );
}

async function findFailed(
  jobs: Queue<JobData>,
  waiting: ReadonlyMap<string, FarmUnit>,
  failed: Map<string, string>,
): Promise<void> {
  for (const id of await jobs.getRanges(['failed'], 0, -1)) {
    if (!waiting.has(id) || failed.has(id)) continue;
    const job = await jobs.getJob(id);
    if (job) failed.set(id, job.failedReason || 'no reason is known');
  }
}

/** Removes a run and its jobs from the queue. */
export async function withdraw(queue: FarmQueue, run: FarmRun, units: readonly FarmUnit[]): Promise<void> {
  await removeJobs(
    openJobs(queue, run.engine),
    units.map(({ label }) => jobId(run.id, label)),
  );
  await removeRun(queue, run.id);
}
