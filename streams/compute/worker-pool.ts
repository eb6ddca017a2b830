/** Compute workers: engines block their thread, so each lives in one of its own. */
import { once } from 'node:events';
import { SHARE_ENV, Worker } from 'node:worker_threads';
import { InterruptedError, WorkerError } from '../../src/errors.js';
import type { FitStep } from '../../src/methods/method.js';
import type { SolverOptions } from '../../src/methods/mobe/problem.js';
import type { Compute, ComputeOptions } from './compute.js';
import { reviveError } from './revive-error.js';

type Method = 'fit' | 'fold' | 'load' | 'rebuild' | 'compare' | 'difference' | 'gemmRate';

export interface Request {
  readonly id: number;
  readonly method: Method;
  readonly args: readonly unknown[];
}

/** Asks the thread to end once it has answered what came before. */
export type Close = 'close';

export interface WorkerData {
  readonly options: ComputeOptions;
  /** Set to 1 when a running fit should stop. */
  readonly stop: Int32Array;
}

/** One step of the largest models takes minutes; nobody waits for that after asking to stop. */
const STOP_PATIENCE_MS = 10_000;

export type Reply =
  | { id: number; value: unknown }
  | { id: number; step: FitStep }
  | { id: number; error: { name: string; message: string } };

interface Waiting {
  resolve(value: unknown): void;
  reject(error: Error): void;
  onStep?: SolverOptions['onStep'] | undefined;
}

/** One worker, with `Compute`'s methods. Aborting `signal` stops it, and thereby whatever waits for it. */
export class ComputeWorker {
  private readonly worker: Worker;
  private readonly waiting = new Map<number, Waiting>();
  private readonly stop = new Int32Array(new SharedArrayBuffer(4));
  private nextId = 0;
  private dead: Error | undefined;

  constructor(options: ComputeOptions, signal?: AbortSignal) {
    const workerData: WorkerData = { options, stop: this.stop };
    // With an environment of its own, what an engine sets there would not reach native code.
    const script = new URL('./compute-worker.js', import.meta.url);
    this.worker = new Worker(script, { workerData, env: SHARE_ENV });
    this.worker.on('message', (reply: Reply) => this.receive(reply));
    this.worker.on('error', (error) => this.fail(new WorkerError(error.message)));
    this.worker.on('exit', (code) => {
      const asked = Atomics.load(this.stop, 0) === 1;
      this.fail(asked ? new InterruptedError() : new WorkerError(`it exited with code ${code}`));
    });
    signal?.addEventListener('abort', () => void this.close(), { once: true });
  }

  /** The buffers of `transfer` are handed over: they cannot be used here afterwards. */
  call<M extends Method>(
    method: M,
    args: M extends 'fit' ? [Parameters<Compute['fit']>[0]] : Parameters<Compute[M]>,
    { onStep, transfer = [] }: { onStep?: SolverOptions['onStep']; transfer?: ArrayBuffer[] } = {},
  ): Promise<Awaited<ReturnType<Compute[M]>>> {
    return new Promise((resolve, reject) => {
      if (this.dead) return reject(this.dead);
      const id = this.nextId++;
      this.waiting.set(id, { resolve: resolve as (value: unknown) => void, reject, onStep });
      this.worker.postMessage({ id, method, args } satisfies Request, transfer);
    });
  }

  private receive(reply: Reply): void {
    const waiting = this.waiting.get(reply.id);
    if (!waiting) return;
    if ('step' in reply) {
      waiting.onStep?.(reply.step);
      return;
    }
    this.waiting.delete(reply.id);
    if ('error' in reply)
      waiting.reject(reviveError(reply.error) ?? new WorkerError(`${reply.error.name}: ${reply.error.message}`));
    else waiting.resolve(reply.value);
  }

  private fail(error: Error): void {
    this.dead ??= error;
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }

  /**
   * Ends the thread. A running fit stops at its next step: killing a thread inside native code can take the process along,
   * so that is left for one that does not answer.
   */
  async close(): Promise<void> {
    if (this.dead) return;
    const ended = once(this.worker, 'exit');
    Atomics.store(this.stop, 0, 1);
    this.worker.postMessage('close' satisfies Close);
    const patience = setTimeout(() => void this.worker.terminate(), STOP_PATIENCE_MS);
    await ended;
    clearTimeout(patience);
  }
}

/** Runs `body` with a worker that ends with it. */
export async function* withWorker<T>(
  options: ComputeOptions,
  signal: AbortSignal,
  body: (worker: ComputeWorker) => AsyncIterable<T>,
): AsyncGenerator<T> {
  const worker = new ComputeWorker(options, signal);
  try {
    yield* body(worker);
  } finally {
    await worker.close();
  }
}
