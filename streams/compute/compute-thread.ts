/** An engine blocks its thread while it computes, so each engine has a thread of its own. */
import { once } from 'node:events';
import { SHARE_ENV, Worker } from 'node:worker_threads';
import { InterruptedError, WorkerError } from '../../src/errors.js';
import type { FitStep } from '../../src/methods/method.js';
import { registeredModules } from '../../src/methods/registry.js';
import { HandOver } from '../flow/hand-over.js';
import type { Compute, ComputeOptions, RepairMethod } from './compute.js';
import type { ExpertRepair } from './expert-repair.js';
import type { FitJob, JobData, JobOutput, OwnedData } from './job.js';
import { reviveError } from './revive-error.js';
import type { StateFile } from './state-file.js';

/** The calls that a thread answers besides jobs. */
export type CallMethod =
  | 'load'
  | 'rebuild'
  | 'compare'
  | 'difference'
  | 'openStatistics'
  | 'beginExpert'
  | 'addTokens'
  | 'finishExpert'
  | 'repair';

/** Messages to the thread. */
export type ToThread =
  | { kind: 'call'; id: number; method: CallMethod; args: readonly unknown[] }
  | { kind: 'run'; id: number; job: FitJob; data: JobData; state: StateFile | undefined }
  /** An output of a job was taken. */
  | { kind: 'taken'; id: number }
  /** No more outputs of a job are wanted. */
  | { kind: 'enough'; id: number }
  /** The thread ends once it has answered the requests before this one. */
  | { kind: 'close' };

/** Messages from the thread. */
export type FromThread =
  | { kind: 'value'; id: number; value: unknown }
  | { kind: 'step'; id: number; step: FitStep }
  | { kind: 'output'; id: number; output: JobOutput }
  | { kind: 'error'; id: number; error: { name: string; message: string } };

/** The data that a thread starts with. */
export interface ThreadData {
  readonly options: ComputeOptions;
  /** Modules of methods to register. */
  readonly methods: readonly string[];
  /** Set to 1 when a running job should stop. */
  readonly stop: Int32Array;
}

/** How long a thread may take to stop. A step of the largest models takes minutes, which is too long to wait for. */
const STOP_PATIENCE_MS = 10_000;

interface Waiting {
  resolve(value: unknown): void;
  reject(error: Error): void;
  onStep?: ((step: FitStep) => void) | undefined;
  onOutput?: (output: JobOutput) => void;
}

/** Options of a job that runs in a thread. */
export interface RunInThread {
  readonly onStep?: ((step: FitStep) => void) | undefined;
  /** The file in which the fit saves its state, and from which it resumes. */
  readonly state?: StateFile | undefined;
  /** Transfers the buffers of the data to the thread. The caller cannot use them afterwards. */
  readonly handOver?: boolean;
}

/**
 * A thread with one `Compute`. Aborting `signal` stops the thread. All requests then fail with `InterruptedError`; they fail
 * with `WorkerError` if the thread crashes.
 */
export class ComputeThread {
  private readonly worker: Worker;
  private readonly waiting = new Map<number, Waiting>();
  private readonly stop = new Int32Array(new SharedArrayBuffer(4));
  private nextId = 0;
  private dead: Error | undefined;

  constructor(options: ComputeOptions, signal?: AbortSignal) {
    const workerData: ThreadData = { options, methods: registeredModules(), stop: this.stop };
    // Engines set environment variables for native code. That works only if the thread shares the process's environment.
    const script = new URL('./compute-thread-entry.js', import.meta.url);
    this.worker = new Worker(script, { workerData, env: SHARE_ENV });
    this.worker.on('message', (message: FromThread) => this.receive(message));
    this.worker.on('error', (error) => this.fail(new WorkerError(error.message)));
    this.worker.on('exit', (code) => {
      const asked = Atomics.load(this.stop, 0) === 1;
      this.fail(asked ? new InterruptedError() : new WorkerError(`it exited with code ${code}`));
    });
    signal?.addEventListener('abort', () => void this.close(), { once: true });
  }

  /** Calls a method of the thread's `Compute`. The buffers of `transfer` cannot be used afterwards. */
  call<M extends CallMethod>(
    method: M,
    args: Parameters<Compute[M]>,
    transfer: ArrayBuffer[] = [],
  ): Promise<Awaited<ReturnType<Compute[M]>>> {
    const id = this.nextId++;
    return this.ask({ kind: 'call', id, method, args }, {}, transfer) as Promise<Awaited<ReturnType<Compute[M]>>>;
  }

  /** Calls a method of the thread's `ExpertRepair`. */
  repair<M extends RepairMethod>(
    method: M,
    ...args: Parameters<ExpertRepair[M]>
  ): Promise<Awaited<ReturnType<ExpertRepair[M]>>> {
    return this.call('repair', [method, ...args] as never) as Promise<Awaited<ReturnType<ExpertRepair[M]>>>;
  }

  /** Runs a job. The thread computes at most one output ahead. Ending the iteration ends the job. */
  async *run(
    job: FitJob,
    data: OwnedData,
    { onStep, state, handOver = false }: RunInThread = {},
  ): AsyncGenerator<JobOutput> {
    const id = this.nextId++;
    const outputs = new HandOver<JobOutput>();
    let ended = false;
    const end = (error?: Error): void => {
      ended = true;
      outputs.end(error);
    };
    const transfer = handOver ? [...data.experts, ...(data.metric ?? [])].map(({ buffer }) => buffer) : [];
    const onOutput = (output: JobOutput): void => outputs.push(output);
    this.ask({ kind: 'run', id, job, data, state }, { onStep, onOutput }, transfer).then(() => end(), end);
    try {
      for await (const output of outputs) {
        yield output;
        this.post({ kind: 'taken', id });
      }
    } finally {
      if (!ended) this.post({ kind: 'enough', id });
    }
  }

  private ask(
    request: Extract<ToThread, { id: number }>,
    hooks: Pick<Waiting, 'onStep' | 'onOutput'> = {},
    transfer: ArrayBuffer[] = [],
  ): Promise<unknown> {
    return new Promise((resolve, reject) => {
      if (this.dead) return reject(this.dead);
      this.waiting.set(request.id, { resolve, reject, ...hooks });
      this.post(request, transfer);
    });
  }

  private post(message: ToThread, transfer: ArrayBuffer[] = []): void {
    this.worker.postMessage(message, transfer);
  }

  private receive(message: FromThread): void {
    const waiting = this.waiting.get(message.id);
    if (!waiting) return;
    switch (message.kind) {
      case 'step':
        waiting.onStep?.(message.step);
        return;
      case 'output':
        waiting.onOutput?.(message.output);
        return;
      case 'value':
        waiting.resolve(message.value);
        break;
      case 'error': {
        const { error } = message;
        waiting.reject(reviveError(error) ?? new WorkerError(`${error.name}: ${error.message}`));
      }
    }
    this.waiting.delete(message.id);
  }

  private fail(error: Error): void {
    this.dead ??= error;
    for (const { reject } of this.waiting.values()) reject(error);
    this.waiting.clear();
  }

  /**
   * Ends the thread. A running fit stops at its next step. The thread is killed only if it does not stop in time, because
   * killing a thread inside native code can crash the process.
   */
  async close(): Promise<void> {
    if (this.dead) return;
    const ended = once(this.worker, 'exit');
    Atomics.store(this.stop, 0, 1);
    this.post({ kind: 'close' });
    const patience = setTimeout(() => void this.worker.terminate(), STOP_PATIENCE_MS);
    await ended;
    clearTimeout(patience);
  }
}

/** Runs `body` with a thread, and ends the thread after it. */
export async function* withThread<T>(
  options: ComputeOptions,
  signal: AbortSignal,
  body: (thread: ComputeThread) => AsyncIterable<T>,
): AsyncGenerator<T> {
  const thread = new ComputeThread(options, signal);
  try {
    yield* body(thread);
  } finally {
    await thread.close();
  }
}
