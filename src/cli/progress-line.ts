import { LINE_INTERVAL_MS } from './tell.js';

/** A line on stderr that changes in place. If stderr is not a terminal, a new line every few seconds. */
export function progressLine() {
  let last = performance.now();
  const clear = (): void => void (process.stderr.isTTY && process.stderr.write('\r\x1b[K'));
  return {
    clear,
    write: (text: string): void => void process.stderr.write(`${text}\n`),
    update(text: string): void {
      clear();
      if (process.stderr.isTTY) process.stderr.write(text);
      else if (performance.now() - last > LINE_INTERVAL_MS) {
        process.stderr.write(`${text}\n`);
        last = performance.now();
      }
    },
  };
}
