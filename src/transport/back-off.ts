import { setTimeout as sleep } from 'node:timers/promises';
import { BACK_OFF_MS } from './limits.js';

/** Waits before the next attempt, longer after each failure. The time is partly random, so that peers do not retry in step. */
export function backOff(failures: number, signal: AbortSignal): Promise<void> {
  const { first, factor, most } = BACK_OFF_MS;
  const full = Math.min(most, first * factor ** failures);
  return sleep(full * (0.5 + Math.random() / 2), undefined, { signal });
}
