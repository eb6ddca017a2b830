/** The thread's side of compute-thread.ts: one `Compute`, one request at a time. */
import { parentPort, workerData } from 'node:worker_threads';
import { InterruptedError } from '../../src/errors.js';
import type { FitStep } from '../../src/methods/method.js';
import { Compute } from './compute.js';
import type { FromThread, ThreadData, ToThread } from './compute-thread.js';
import { stateStore } from './state-file.js';

const port = parentPort;
if (!port) throw new TypeError('compute-thread-entry runs only as a worker thread');

/** More often than this a progress message costs more than it tells. */
const STEP_INTERVAL_MS = 50;
/** Outputs of a job that may be on their way: while one is written, the next is computed. */
const OUTPUTS_AHEAD = 2;

const { options, stop } = workerData as ThreadData;
const compute = Compute.create(options);
const stopping = (): boolean => Atomics.load(stop, 0) === 1;
const post = (message: FromThread, transfer: ArrayBuffer[] = []): void => port?.postMessage(message, transfer);

/** Counts the outputs that the other side has taken. */
interface Taken {
  outputs: number;
  /** No more outputs are wanted. */
  ended: boolean;
  changed: () => void;
}
const running = new Map<number, Taken>();

async function call({ id, method, args }: Extract<ToThread, { kind: 'call' }>): Promise<void> {
  // biome-ignore lint/suspicious/noExplicitAny: the other side types each method's arguments
  const value = await ((await compute)[method] as any)(...args);
  post({ kind: 'value', id, value }, buffersOf(value));
}

async function run({ id, job, experts, state }: Extract<ToThread, { kind: 'run' }>): Promise<void> {
  let last = 0;
  /** When the step's state could be saved. A request to stop that comes after that waits for the next step: its state comes first. */
  let asked = false;
  const look = (): boolean => {
    asked = stopping();
    return asked;
  };
  const onStep = (step: FitStep): void => {
    if (state ? asked : stopping()) throw new InterruptedError();
    const now = performance.now();
    if (now - last < STEP_INTERVAL_MS) return;
    last = now;
    post({ kind: 'step', id, step });
  };
  const taken: Taken = { outputs: 0, ended: false, changed() {} };
  running.set(id, taken);
  const hooks = { onStep, states: state && stateStore(state, look) };
  let given = 0;
  for await (const output of (await compute).run(job, experts, hooks)) {
    post({ kind: 'output', id, output }, buffersOf('shared' in output ? output.shared : output.tensors));
    given++;
    while (given - taken.outputs >= OUTPUTS_AHEAD && !taken.ended)
      await new Promise<void>((resolve) => {
        taken.changed = resolve;
      });
    if (taken.ended) break;
    if (stopping()) throw new InterruptedError();
  }
  post({ kind: 'value', id, value: undefined });
}

/** Results are handed over, not copied. */
const buffersOf = (value: unknown): ArrayBuffer[] =>
  Object.values(value ?? {})
    .filter((field): field is Uint8Array<ArrayBuffer> => field instanceof Uint8Array)
    .map((field) => field.buffer);

async function answer(request: Extract<ToThread, { kind: 'call' | 'run' }>): Promise<void> {
  try {
    await (request.kind === 'run' ? run(request) : call(request));
  } catch (error) {
    const { name, message, stack, ...fields } = error as Error;
    post({ kind: 'error', id: request.id, error: { ...fields, name, message } });
  } finally {
    running.delete(request.id);
  }
}

port.on('message', (message: ToThread) => {
  if (message.kind === 'close') {
    port.close();
    for (const taken of running.values()) {
      taken.ended = true;
      taken.changed();
    }
    return;
  }
  if (message.kind === 'call' || message.kind === 'run') {
    void answer(message);
    return;
  }
  const taken = running.get(message.id);
  if (!taken) return;
  if (message.kind === 'taken') taken.outputs++;
  else taken.ended = true;
  taken.changed();
});
