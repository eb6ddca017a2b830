import { fork } from 'node:child_process';
import { fileURLToPath } from 'node:url';
import { InterruptedError, MeasurementError } from '../../src/errors.js';
import type { Sample } from './sample.js';
import type { Task } from './task.js';

const CHILD = fileURLToPath(new URL('./child.js', import.meta.url));

type Reply = { readonly sample: Sample } | { readonly error: { readonly name: string; readonly message: string } };

/** Runs a task in a process of its own. `signal` ends the process; the caller must remove its files. Throws a `MeasurementError` or an `InterruptedError`. */
export function runTask(task: Task, signal?: AbortSignal): Promise<Sample> {
  return new Promise((resolve, reject) => {
    let reply: Reply | undefined;
    const child = fork(CHILD, [JSON.stringify(task)], { stdio: ['ignore', 'ignore', 'inherit', 'ipc'] });
    const stop = (): void => void child.kill('SIGTERM');
    signal?.addEventListener('abort', stop, { once: true });
    child.on('message', (message) => {
      reply = message as Reply;
    });
    child.once('error', (error) => reject(new MeasurementError(task.kind, error.message)));
    child.once('close', (code, killed) => {
      signal?.removeEventListener('abort', stop);
      if (signal?.aborted) reject(new InterruptedError());
      else if (!reply) reject(new MeasurementError(task.kind, `its process ended with ${killed ?? code}`));
      else if ('error' in reply) reject(new MeasurementError(task.kind, reply.error.message));
      else resolve(reply.sample);
    });
  });
}
