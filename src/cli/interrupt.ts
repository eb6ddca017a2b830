/** Turns Ctrl-C and SIGTERM into an orderly stop: once asks, twice ends the process. */
export interface Interruption {
  readonly signal: AbortSignal;
  /** From now on signals do again what they do by themselves. */
  stop(): void;
}

/** @param onAsked called the first time, before the signal aborts */
export function interruptible(onAsked: () => void): Interruption {
  const controller = new AbortController();
  const interrupt = (): void => {
    if (controller.signal.aborted) process.exit(130);
    onAsked();
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
