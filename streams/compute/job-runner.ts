/** Runners of jobs: a thread of this process, or another machine. */
import type { FitStep } from '../../src/methods/method.js';
import type { ComputeOptions } from './compute.js';
import { ComputeThread } from './compute-thread.js';
import type { FitJob, JobOutput, OwnedData } from './job.js';
import type { StateFile } from './state-file.js';

/** Callbacks of a job, and its state file. */
export interface RunnerHooks {
  readonly onStep: (step: FitStep) => void;
  /** The file in which a fit saves its state. Only a runner on this machine uses it. */
  readonly state?: StateFile | undefined;
}

/** Runs one job at a time. A `PeerError` that is not a `RemoteError` means that the runner and its job are lost. */
export interface JobRunner {
  /** The name in messages about a lost runner. */
  readonly name: string;
  /** Ending the iteration ends the job. */
  run(job: FitJob, data: OwnedData, hooks: RunnerHooks): AsyncIterable<JobOutput>;
  close(): Promise<void>;
}

/** A runner with a thread of its own. The buffers of a job's data are transferred to it. */
export function localRunner(options: ComputeOptions, signal: AbortSignal): JobRunner {
  const thread = new ComputeThread(options, signal);
  return {
    name: 'this machine',
    run: (job, data, hooks) => thread.run(job, data, { ...hooks, handOver: true }),
    close: () => thread.close(),
  };
}

/** Lends runners. Callers wait in order while all runners are lent. */
export class RunnerPool {
  private readonly idle: JobRunner[];
  private readonly queue: Array<{ resolve(runner: JobRunner): void; reject(error: Error): void }> = [];
  private readonly members: Set<JobRunner>;

  /** @param substitute makes a new runner when the last one is lost */
  constructor(
    runners: readonly JobRunner[],
    private readonly substitute?: (reason: Error) => JobRunner,
  ) {
    this.members = new Set(runners);
    this.idle = [...runners];
  }

  get size(): number {
    return this.members.size;
  }

  /** Resolves with the next free runner. Rejects when all runners are lost and there is no substitute. */
  acquire(): Promise<JobRunner> {
    const runner = this.idle.pop();
    return runner ? Promise.resolve(runner) : new Promise((resolve, reject) => this.queue.push({ resolve, reject }));
  }

  /** Gives a runner back. Does nothing for a lost runner. */
  release(runner: JobRunner): void {
    if (!this.members.has(runner)) return;
    const next = this.queue.shift();
    if (next) next.resolve(runner);
    else this.idle.push(runner);
  }

  /**
   * Removes a lent runner that is lost. If it was the last, the substitute replaces it, or all waiting callers get `reason`.
   */
  lose(runner: JobRunner, reason: Error): void {
    if (!this.members.delete(runner)) return;
    void runner.close().catch(() => {});
    if (this.members.size > 0) return;
    if (!this.substitute) {
      for (const { reject } of this.queue.splice(0)) reject(reason);
      return;
    }
    const substitute = this.substitute(reason);
    this.members.add(substitute);
    this.release(substitute);
  }

  async close(): Promise<void> {
    await Promise.all([...this.members].map((runner) => runner.close()));
  }
}
