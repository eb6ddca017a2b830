/** The state of a farm: its runs with their groups, as the queue knows them. */
import type { Job, Queue } from 'bullmq';
import { type FarmRun, type JobData, type JobResult, jobProgress, listRuns, openJobs } from './farm-run.js';
import { openQueue } from './redis.js';

/** A group that is being fitted. */
export interface RunningGroup {
  readonly group: string;
  readonly host: string;
  readonly step?: number | undefined;
  readonly steps?: number | undefined;
  readonly loss?: number | undefined;
  readonly secondsLeft?: number | undefined;
}

/** The state of a run. Its groups are counted as jobs: with a repair of down_proj a job has all groups of a layer. */
export interface RunStatus {
  readonly run: string;
  readonly model: string;
  readonly out: string;
  readonly factors: string;
  readonly engine: string;
  readonly threads: number;
  readonly submitted: string;
  readonly groups: number;
  readonly done: number;
  readonly waiting: number;
  readonly running: readonly RunningGroup[];
  readonly failed: ReadonlyArray<{ readonly group: string; readonly reason: string; readonly tries: number }>;
  /** Expected seconds until all groups are fitted, at the pace so far; undefined while that is unknown. */
  readonly secondsLeft: number | undefined;
}

export interface FarmStatus {
  readonly queue: string;
  readonly runs: readonly RunStatus[];
  /** Workers that are connected, by engine. */
  readonly workers: Readonly<Record<string, number>>;
}

/** The finished jobs from which the pace is taken. */
const PACE_JOBS = 50;

/** Asks the queue. Throws as `openQueue` does. */
export async function farmStatus(address: string): Promise<FarmStatus> {
  const opened = await openQueue(address);
  try {
    const runs = await listRuns(opened);
    const workers: Record<string, number> = {};
    const known = new Map<string, { readonly queue: Queue<JobData, JobResult>; readonly jobs: JobsByRun }>();
    const states: RunStatus[] = [];
    for (const run of runs) {
      let of = known.get(run.engine);
      if (!of) {
        const queue = openJobs(opened, run.engine);
        workers[run.engine] = await queue.getWorkersCount();
        of = { queue, jobs: await jobsByRun(queue) };
        known.set(run.engine, of);
      }
      states.push(await runStatus(of.queue, run, of.jobs));
    }
    return { queue: opened.name, runs: states, workers };
  } finally {
    await opened.close();
  }
}

const STATES = ['wait', 'delayed', 'active', 'failed', 'completed'] as const;
type JobsByRun = Readonly<Record<(typeof STATES)[number], ReadonlyMap<string, readonly string[]>>>;

/** The ids of jobs by state and run. An id begins with that of its run, so no job must be read. */
async function jobsByRun(queue: Queue<JobData, JobResult>): Promise<JobsByRun> {
  const entries = STATES.map(async (state) => {
    const runs = new Map<string, string[]>();
    for (const id of await queue.getRanges([state], 0, -1)) {
      const run = id.slice(0, id.indexOf('-'));
      const known = runs.get(run);
      if (known) known.push(id);
      else runs.set(run, [id]);
    }
    return [state, runs] as const;
  });
  return Object.fromEntries(await Promise.all(entries)) as unknown as JobsByRun;
}

async function runStatus(queue: Queue<JobData, JobResult>, run: FarmRun, jobs: JobsByRun): Promise<RunStatus> {
  const idsIn = (state: (typeof STATES)[number]): readonly string[] => jobs[state].get(run.id) ?? [];
  const read = async (ids: readonly string[]): Promise<Array<Job<JobData, JobResult>>> =>
    (await Promise.all(ids.map((id) => queue.getJob(id)))).filter((job) => job !== undefined);
  const waiting = idsIn('wait').length + idsIn('delayed').length;
  const running = (await read(idsIn('active'))).map(runningGroup);
  const failed = (await read(idsIn('failed'))).map(({ data, failedReason, attemptsMade }) => ({
    ...{ group: data.label, reason: failedReason, tries: attemptsMade },
  }));
  const paces = (await read(idsIn('completed').slice(0, PACE_JOBS))).flatMap(({ returnvalue }) =>
    returnvalue && !returnvalue.already ? [returnvalue.seconds] : [],
  );
  return {
    ...{ run: run.id, model: run.model, out: run.out, factors: run.factors, engine: run.engine, threads: run.threads },
    ...{ submitted: run.submitted, groups: run.units, waiting, running, failed },
    done: run.finished + idsIn('completed').length,
    secondsLeft: secondsLeft(waiting, running, paces),
  };
}

function runningGroup({ data, progress }: Job<JobData>): RunningGroup {
  const { host = 'a worker', step, steps, loss, secondsLeft } = jobProgress.partial().safeParse(progress).data ?? {};
  const known = (value: number | null | undefined): number | undefined => value ?? undefined; // JSON has null for NaN
  return { group: data.label, host, step, steps, loss: known(loss), secondsLeft: known(secondsLeft) };
}

/** Expected seconds, if as many groups are fitted at once as now. @param paces seconds of finished groups */
export function secondsLeft(
  waiting: number,
  running: ReadonlyArray<Pick<RunningGroup, 'secondsLeft'>>,
  paces: readonly number[],
): number | undefined {
  if (waiting + running.length === 0) return 0;
  const mean = (all: readonly number[]): number => all.reduce((sum, it) => sum + it, 0) / all.length;
  const left = running.flatMap(({ secondsLeft }) => secondsLeft ?? []);
  if (!running.length || (!paces.length && (waiting || left.length < running.length))) return undefined;
  const pace = paces.length ? mean(paces) : 0;
  const open = running.map(({ secondsLeft }) => secondsLeft ?? pace / 2);
  return Math.max(...open, (open.reduce((sum, it) => sum + it, 0) + waiting * pace) / running.length);
}
