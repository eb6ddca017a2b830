/** Turns Ctrl-C and SIGTERM into an orderly stop. A second signal ends the process at once. */
export interface Interruption {
  readonly signal: AbortSignal;
  /** Restores the default effect of signals. */
  stop(): void;
}

/**
 * The user gets the terminal back within two seconds. A step of a large model takes longer, and a thread inside native code
 * cannot be stopped. The process then ends without waiting. Finished work and the last saved state are kept, and the remaining
 * lock file is void.
 */
const STOP_WITHIN_MS = 1_500;

/**
 * Listens for signals until `stop` is called.
 * @param onAsked called at the first signal, before `signal` is aborted
 * @param onOverdue called before the process is ended because it did not stop in time
 */
export function interruptible(onAsked: () => void, onOverdue: () => void = () => {}): Interruption {
  const controller = new AbortController();
  /** Ends the process by the signal itself, because a normal exit waits for threads inside native code. */
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
    deadline.unref(); // it must not keep the process alive itself
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
