import { setTimeout as sleep } from 'node:timers/promises';
import { BACK_OFF_MS } from './limits.js';

/** Waits before the attempt after `failures` failed ones: longer each time, and not in step with others who were cut too. */
export function backOff(failures: number, signal: AbortSignal): Promise<void> {
  const { first, factor, most } = BACK_OFF_MS;
  const full = Math.min(most, first * factor ** failures);
  return sleep(full * (0.5 + Math.random() / 2), undefined, { signal });
}
