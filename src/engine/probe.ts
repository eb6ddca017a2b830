/** Tries an engine in a process of its own, because a graphics runtime that fails may crash its process. */
import { fork } from 'node:child_process';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import type { EngineName } from './create-engine.js';
import type { EngineFacts } from './engine.js';
import type { ProductShape } from './gemm-rate.js';

const TIMEOUT_MS = 120_000;

/** The probe's result for an engine that works. */
export interface WorkingEngine extends EngineFacts {
  readonly name: EngineName;
  /** Floating-point operations a second of plain matrix products; undefined if it was not measured. */
  readonly gemmRate?: number | undefined;
}

/** The probe's result for an engine that does not work. */
export interface BrokenEngine {
  readonly name: EngineName;
  /** Why it does not work, and what to do. */
  readonly reason: string;
}

/** Settings of a probe. */
export interface ProbeOptions {
  readonly threads: number;
  /** Measure the rate of products of this shape, or of any size that suits the device. Default: do not measure. */
  readonly rate?: ProductShape | 'any';
  /** Gets each line that the engine's runtime prints on stderr. */
  readonly onLine?: (line: string) => void;
}

/** The request to the child process, as JSON in its argument. */
export interface ProbeRequest extends Omit<ProbeOptions, 'onLine'> {
  readonly name: EngineName;
}

/** Whether a probed engine works. */
export const works = (probe: WorkingEngine | BrokenEngine): probe is WorkingEngine => 'device' in probe;

/** Starts an engine in a child process, runs a small product and ends the process. Never throws: the result says what failed. */
export function probeEngine(
  name: EngineName,
  { onLine, ...options }: ProbeOptions,
): Promise<WorkingEngine | BrokenEngine> {
  const request: ProbeRequest = { name, ...options };
  const child = fork(fileURLToPath(new URL('./probe-child.js', import.meta.url)), [JSON.stringify(request)], {
    stdio: ['ignore', 'ignore', onLine ? 'pipe' : 'ignore', 'ipc'],
  });
  if (onLine && child.stderr) createInterface(child.stderr).on('line', onLine);
  return new Promise((resolve) => {
    const settle = (probe: WorkingEngine | BrokenEngine): void => {
      clearTimeout(timer);
      child.kill('SIGKILL'); // some runtimes crash while they shut down
      resolve(probe);
    };
    const broken = (what: string): void =>
      settle({ name, reason: `${what}. Update the device's driver, or use --engine onnx-cpu` });
    const timer = setTimeout(() => broken(`it did not answer within ${TIMEOUT_MS / 1000} s`), TIMEOUT_MS);
    child.once('message', (probe) => settle(probe as WorkingEngine | BrokenEngine));
    child.once('error', (error) => broken(error.message));
    child.once('exit', (code, signal) => broken(`its runtime ended the process that tried it (${signal ?? code})`));
  });
}
