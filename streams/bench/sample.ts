/** One measurement of one task, taken inside the process that does it and nothing else. */
import { readFileSync } from 'node:fs';
import { monitorEventLoopDelay } from 'node:perf_hooks';
import type { StageTimes } from '../flow/stage-clock.js';

export interface Sample {
  /** Of the source, or of the memory that was gone through. */
  readonly bytes: number;
  readonly seconds: number;
  /** User and system time of all threads, and of the commands that were run. */
  readonly cpuSeconds: number;
  readonly peakRssBytes: number;
  /** Delay of the event loop that 99 of 100 moments stay below; absent where nothing ran on it. */
  readonly loopP99Ms?: number;
  /** Most bytes that were read and not yet written. */
  readonly heldBytes?: number;
  readonly stages?: readonly StageTimes[];
}

/** What a task tells of itself. It times what counts of it; making ready and clearing away does not. */
export interface Outcome extends Pick<Sample, 'bytes' | 'seconds' | 'cpuSeconds' | 'heldBytes' | 'stages'> {
  /** Of a command, which is another process. */
  readonly peakRssBytes?: number;
  /** The event loop had no part in it. */
  readonly besideLoop?: boolean;
}

/** Starts a timer; what it returns tells the time since then, as often as it is asked. */
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

/** The histogram's timer: what it shows of an idle loop, and is taken off. */
const RESOLUTION_MS = 5;

export async function takeSample(task: () => Promise<Outcome>): Promise<Sample> {
  const delay = monitorEventLoopDelay({ resolution: RESOLUTION_MS });
  delay.enable();
  const { besideLoop, ...outcome } = await task();
  delay.disable();
  const loopP99Ms = Math.max(0, delay.percentile(99) / 1e6 - RESOLUTION_MS);
  return { peakRssBytes: peakRss(), ...outcome, ...(!besideLoop && { loopP99Ms }) };
}

/**
 * Linux hands `ru_maxrss` of the parent on to a process it starts; the high-water mark of its own memory it does not.
 */
function peakRss(): number {
  try {
    const [, kibibytes] = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync('/proc/self/status', 'utf8')) ?? [];
    if (kibibytes) return Number(kibibytes) * 1024;
  } catch {
    // another system
  }
  return process.resourceUsage().maxRSS * 1024;
}

/** Of Linux's clock for processes: `sysconf(_SC_CLK_TCK)`, the same on every architecture that Node runs on. */
const TICKS_PER_SECOND = 100;

/** Processor time of the commands that have ended; 0 where the system does not tell. */
function childSeconds(): number {
  try {
    const stat = readFileSync('/proc/self/stat', 'utf8');
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ');
    return (Number(fields[13]) + Number(fields[14])) / TICKS_PER_SECOND; // cutime, cstime: fields 16 and 17 of proc(5)
  } catch {
    return 0;
  }
}
