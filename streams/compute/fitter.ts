/** What fits a group: a thread of this process, or a machine elsewhere. */
import type { FitStep } from '../../src/methods/method.js';
import type { ComputeOptions, FitResult, FitTask, FoldedExpert, Written } from './compute.js';
import { ComputeWorker } from './worker-pool.js';

/** Holds at most one group at a time. A `PeerError` that is no `RemoteError` means that it is lost, and what it held with it. */
export interface Fitter {
  /** For people: what a lost one is called. */
  readonly name: string;
  fit(task: FitTask, onStep: (step: FitStep) => void): Promise<FitResult>;
  /** What is written for one expert of the fitted group. */
  fold(expert: number, written: Written): Promise<FoldedExpert>;
  close(): Promise<void>;
}

/** A thread of its own. The experts' buffers are handed over to it. */
export function localFitter(options: ComputeOptions, signal: AbortSignal): Fitter {
  const worker = new ComputeWorker(options, signal);
  return {
    name: 'this machine',
    fit: (task, onStep) => worker.call('fit', [task], { onStep, transfer: task.experts.map(({ buffer }) => buffer) }),
    fold: (expert, written) => worker.call('fold', [expert, written]),
    close: () => worker.close(),
  };
}

/** Lends fitters; who asks while all are out waits its turn. */
export class FitterPool {
  private readonly idle: Fitter[];
  private readonly queue: Array<{ resolve(fitter: Fitter): void; reject(error: Error): void }> = [];
  private readonly members: Set<Fitter>;

  /** @param substitute stands in when the last one is lost */
  constructor(
    fitters: readonly Fitter[],
    private readonly substitute?: (reason: Error) => Fitter,
  ) {
    this.members = new Set(fitters);
    this.idle = [...fitters];
  }

  get size(): number {
    return this.members.size;
  }

  acquire(): Promise<Fitter> {
    const fitter = this.idle.pop();
    return fitter ? Promise.resolve(fitter) : new Promise((resolve, reject) => this.queue.push({ resolve, reject }));
  }

  release(fitter: Fitter): void {
    if (!this.members.has(fitter)) return;
    const next = this.queue.shift();
    if (next) next.resolve(fitter);
    else this.idle.push(fitter);
  }

  /** A fitter that is lent out is lost. The others go on; without any, the substitute does, or whoever waits is told. */
  lose(fitter: Fitter, reason: Error): void {
    if (!this.members.delete(fitter)) return;
    void fitter.close().catch(() => {});
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
    await Promise.all([...this.members].map((fitter) => fitter.close()));
  }
}
