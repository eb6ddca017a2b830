/** What runs jobs: a thread of this process, or a machine elsewhere. */
import type { FitStep } from '../../src/methods/method.js';
import type { ComputeOptions } from './compute.js';
import { ComputeThread } from './compute-thread.js';
import type { FitJob, JobOutput } from './job.js';
import type { StateFile } from './state-file.js';

export interface RunHooks {
  readonly onStep: (step: FitStep) => void;
  /** Where a fit on this machine saves its state. */
  readonly state?: StateFile | undefined;
}

/** Runs one job at a time. A `PeerError` that is no `RemoteError` means that it is lost, and the job with it. */
export interface JobRunner {
  /** For people: what a lost one is called. */
  readonly name: string;
  /** Ending the iteration ends the job. */
  run(job: FitJob, experts: ReadonlyArray<Uint8Array<ArrayBuffer>>, hooks: RunHooks): AsyncIterable<JobOutput>;
  close(): Promise<void>;
}

/** A thread of its own. The experts' buffers are handed over to it. */
export function localRunner(options: ComputeOptions, signal: AbortSignal): JobRunner {
  const thread = new ComputeThread(options, signal);
  return {
    name: 'this machine',
    run: (job, experts, hooks) => thread.run(job, experts, { ...hooks, handOver: true }),
    close: () => thread.close(),
  };
}

/** Lends runners; who asks while all are out waits its turn. */
export class RunnerPool {
  private readonly idle: JobRunner[];
  private readonly queue: Array<{ resolve(runner: JobRunner): void; reject(error: Error): void }> = [];
  private readonly members: Set<JobRunner>;

  /** @param substitute stands in when the last one is lost */
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

  acquire(): Promise<JobRunner> {
    const runner = this.idle.pop();
    return runner ? Promise.resolve(runner) : new Promise((resolve, reject) => this.queue.push({ resolve, reject }));
  }

  release(runner: JobRunner): void {
    if (!this.members.has(runner)) return;
    const next = this.queue.shift();
    if (next) next.resolve(runner);
    else this.idle.push(runner);
  }

  /** A runner that is lent out is lost. The others go on; without any, the substitute does, or whoever waits is told. */
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
