/** Turns Ctrl-C and SIGTERM into an orderly stop: once asks, twice ends the process. */
export interface Interruption {
  readonly signal: AbortSignal;
  /** From now on signals do again what they do by themselves. */
  stop(): void;
}

/**
 * Who asks to stop gets the terminal back within two seconds. A step of a large model takes longer than this, and a thread
 * inside native code cannot be stopped: then the process ends as it is. What is finished, and the state saved last, is kept all
 * the same; the lock it leaves is void.
 */
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
