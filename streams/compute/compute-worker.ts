/** The worker thread's side of worker-pool.ts: runs one `Compute`, one call at a time. */
import { parentPort, workerData } from 'node:worker_threads';
import { InterruptedError } from '../../src/errors.js';
import type { FitStep } from '../../src/methods/method.js';
import { Compute, type FitTask } from './compute.js';
import type { Close, Reply, Request, WorkerData } from './worker-pool.js';

const port = parentPort;
if (!port) throw new TypeError('compute-worker runs only as a worker thread');

/** More often than this a progress message costs more than it tells. */
const STEP_INTERVAL_MS = 50;

const { options, stop } = workerData as WorkerData;
const compute = Compute.create(options);
const stopping = (): boolean => Atomics.load(stop, 0) === 1;

async function answer({ id, method, args }: Request): Promise<void> {
  let last = 0;
  const saves = method === 'fit' && (args[0] as FitTask).state !== undefined;
  /** When the step's state could be saved. What is asked after that waits for the next step: its state comes first. */
  let asked = false;
  const look = (): boolean => {
    asked = stopping();
    return asked;
  };
  const onStep = (step: FitStep): void => {
    if (saves ? asked : stopping()) throw new InterruptedError();
    const now = performance.now();
    if (now - last < STEP_INTERVAL_MS) return;
    last = now;
    port?.postMessage({ id, step } satisfies Reply);
  };
  try {
    // biome-ignore lint/suspicious/noExplicitAny: the client types each method's arguments
    const value = await ((await compute)[method] as any)(
      ...args,
      ...(method === 'fit' ? [{ onStep, stopping: look }] : []),
    );
    port?.postMessage({ id, value } satisfies Reply, buffersOf(value));
  } catch (error) {
    const { name, message, stack, ...fields } = error as Error;
    port?.postMessage({ id, error: { ...fields, name, message } } satisfies Reply);
  }
}

/** Results are handed over, not copied. */
const buffersOf = (value: unknown): ArrayBuffer[] =>
  Object.values(value ?? {})
    .filter((field): field is Uint8Array<ArrayBuffer> => field instanceof Uint8Array)
    .map((field) => field.buffer);

port.on('message', (request: Request | Close) => {
  if (request === 'close') port.close();
  else void answer(request);
});
