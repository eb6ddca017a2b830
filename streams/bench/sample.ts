/** One measurement of one task. It is taken inside the task's process. */
import { readFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { StageTimes } from '../flow/stage-clock.js';

/** Result of one measurement. */
export interface Sample {
  /** Bytes of the source, or of the memory that was processed. */
  readonly bytes: number;
  readonly seconds: number;
  /** User and system time of all threads and of the commands that were run. */
  readonly cpuSeconds: number;
  readonly peakRssBytes: number;
  /** 99th percentile of the event loop's delay, milliseconds; absent if the task did not use the loop. */
  readonly loopP99Ms?: number;
  /** Most bytes that were read and not yet written at any moment. */
  readonly heldBytes?: number;
  readonly stages?: readonly StageTimes[];
}

/** A task's result. The task measures its own time, without preparation and cleaning up. */
export interface Outcome extends Pick<Sample, 'bytes' | 'seconds' | 'cpuSeconds' | 'heldBytes' | 'stages'> {
  /** Peak memory of a command, which is another process. */
  readonly peakRssBytes?: number;
  /** The task did not use the event loop. */
  readonly besideLoop?: boolean;
}

/** Starts a timer. Each call of the returned function gives the time since then. */
export function startTimer(): () => { seconds: number; cpuSeconds: number } {
  const usage = process.cpuUsage();
  const children = childSeconds();
  const started = performance.now();
  return () => {
    const seconds = (performance.now() - started) / 1000;
    const { user, system } = process.cpuUsage(usage);
    return { seconds, cpuSeconds: (user + system) / 1e6 + childSeconds() - children };
  };
}

/** Interval of the delay histogram's timer. An idle loop shows this delay, so it is subtracted. */
const RESOLUTION_MS = 5;

/** Runs a task and adds peak memory and event loop delay to its result. */
export async function takeSample(task: () => Promise<Outcome>): Promise<Sample> {
  const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  delay.enable();
  const { besideLoop, ...outcome } = await task();
  delay.disable();
  const loopP99Ms = Math.max(0, delay.percentile(99) / 1e6 - RESOLUTION_MS);
  return { peakRssBytes: peakRss(), ...outcome, ...(!besideLoop && { loopP99Ms }) };
}

/**
 * Peak memory of this process. On Linux a new process inherits `ru_maxrss` from its parent, but not `VmHWM`.
 */
function peakRss(): number {
  try {
    const [, kibibytes] = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
    if (kibibytes) return Number(kibibytes) * 1024;
  } catch {
    // This system has no /proc.
  }
  return process.resourceUsage().maxRSS * 1024;
}

/** Unit of Linux's process times: `sysconf(_SC_CLK_TCK)`, the same on every architecture that Node supports. */
const TICKS_PER_SECOND = 100;

/** CPU time of the commands that have ended; 0 if the system does not report it. */
function childSeconds(): number {
  try {
    const stat = readFileSync('/proc/self/stat', 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[13]) + Number(fields[14])) / TICKS_PER_SECOND; // cutime, cstime: fields 16 and 17 of proc(5)
  } catch {
    return 0;
  }
}
