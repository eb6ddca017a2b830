/** Turns Ctrl-C and SIGTERM into an orderly stop: once asks, twice ends the process. */
export interface Interruption {
  readonly signal: AbortSignal;
  /** From now on signals do again what they do by themselves. */
  stop(): void;
}

/** What was asked to stop has so long to do it; a solver step of a large model takes longer. */
const STOP_WITHIN_MS = 1_500;

/**
 * @param onAsked called the first time, before the signal aborts
 * @param onOverdue called when the process is ended because what was asked to stop has not
 */
export function interruptible(onAsked: () => void, onOverdue: () => void = () => {}): Interruption {
  const controller = new AbortController();
  /** By the signal itself: leaving in an orderly way waits for threads that are inside native code. */
  const endNow = (signal: NodeJS.Signals): void => {
    for (const it of ['SIGINT', 'SIGTERM'] as const) process.removeAllListeners(it);
    process.kill(process.pid, signal);
  };
  const interrupt = (signal: NodeJS.Signals): void => {
    if (controller.signal.aborted) endNow(signal);
    onAsked();
    const deadline = setTimeout(() => {
      onOverdue();
      endNow(signal);
    }, STOP_WITHIN_MS);
    deadline.unref(); // it is for what keeps the process from ending
    controller.abort();
  };
  process.on('SIGINT', interrupt).on('SIGTERM', interrupt);
  return {
    signal: controller.signal,
    stop() {
      process.off('SIGINT', interrupt).off('SIGTERM', interrupt);
    },
  };
}
