/** Prints the events of a command: sentences for people, or lines of JSON for programs. */
import { Option } from 'commander';
import type { ServiceHooks } from '../../streams/machines/peer-options.js';
import { formatBytes } from '../format.js';

/** The time between two lines of progress if stderr is not a terminal. */
export const LINE_INTERVAL_MS = 10_000;

/** Prints an event, given as an object and as a sentence. Without a sentence it is printed only as JSON. */
export type Tell = (event: { readonly event: string; readonly [field: string]: unknown }, sentence?: string) => void;

export const jsonLines = (): Option =>
  new Option('--json', 'print one JSON object for each event, instead of sentences on stderr; see below');

/**
 * Makes a `Tell`.
 * @param json if true, events go to `lines` as JSON; if false, sentences go to stderr
 */
export const teller =
  (json = false, lines: NodeJS.WritableStream = process.stdout): Tell =>
  (event, sentence) => {
    if (json) lines.write(`${JSON.stringify(event)}\n`);
    else if (sentence !== undefined) process.stderr.write(`${sentence}\n`);
  };

export const serviceHooks = (tell: Tell): ServiceHooks => ({
  onLog: (message) => tell({ event: 'log', message }, message),
  onProblem: ({ name, message }) => tell({ event: 'problem', error: name, message }, `problem: ${message}`),
});

/** Describes the events of `serviceHooks` and `runService`, for the help of services. */
export const SERVICE_EVENTS = `
With --json, stdout gets one object for each line:
  {"event":"listening","url":…}                peers can connect to this URL
  {"event":"log","message":…}                  a peer connected or left, or a part of the work began
  {"event":"problem","error":…,"message":…}    a peer was refused, or its connection failed`;

/** Returns a function that prints the number of bytes so far, every few seconds. */
export function byteTeller(tell: Tell, did: 'written' | 'sent'): (bytes: number) => void {
  let last = performance.now();
  return (bytes) => {
    if (performance.now() - last < LINE_INTERVAL_MS) return;
    last = performance.now();
    tell({ event: 'progress', bytes }, `  ${formatBytes(bytes)} ${did}`);
  };
}
