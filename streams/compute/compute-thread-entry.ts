/** Runs inside the thread of compute-thread.ts: it holds one `Compute` and answers its requests. */
import { parentPort, workerData } from 'node:worker_threads';
import { InterruptedError } from '../../src/errors.js';
import type { FitStep } from '../../src/methods/method.js';
import { registerMethod } from '../../src/methods/registry.js';
import { Compute } from './compute.js';
import type { FromThread, ThreadData, ToThread } from './compute-thread.js';
import { stateStore } from './state-file.js';

const port = parentPort;
if (!port) throw new TypeError('compute-thread-entry runs only as a worker thread');

/** The least time between two progress messages, so that sending them costs little. */
const STEP_INTERVAL_MS = 50;
/** Outputs that may be under way to the other side: the next one is computed while one is written. */
const OUTPUTS_AHEAD = 2;

const { options, methods, stop } = workerData as ThreadData;
const compute = Promise.all(methods.map(registerMethod)).then(() => Compute.create(options));
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

async function run({ id, job, data, state }: Extract<ToThread, { kind: 'run' }>): Promise<void> {
  let last = 0;
  /**
   * Whether a stop was requested when this step's state could be saved. A request that comes later waits for the next step, so
   * that a state is saved before the fit stops.
   */
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
  for await (const output of (await compute).run(job, data, hooks)) {
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

/** The buffers of a result. They are transferred to the other side, not copied. */
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
