/** Elsewhere than on a terminal, progress is told as often as this. */
export const LINE_INTERVAL_MS = 10_000;
