/** What a command tells while it runs, and once it is done: sentences for people, or JSON lines for programs. */
import { Option } from 'commander';
import type { ServiceHooks } from '../../streams/machines/peer-options.js';
import { formatBytes } from '../format.js';

/** Elsewhere than on a terminal, progress is told as often as this. */
export const LINE_INTERVAL_MS = 10_000;

/** One event as an object and as a sentence. Without a sentence only programs are told. */
export type Tell = (event: { readonly event: string; readonly [field: string]: unknown }, sentence?: string) => void;

export const jsonLines = (): Option =>
  new Option('--json', 'print a line of JSON for each event, instead of sentences to stderr; see below');

/** @param json events go to `lines`, one JSON object each; otherwise sentences go to stderr */
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

/** The events of `serviceHooks` and `runService`, for the help of a service. */
export const SERVICE_EVENTS = `
With --json, stdout gets one object a line:
  {"event":"listening","url":…}                peers can connect to this URL
  {"event":"log","message":…}                  a peer began or ended a conversation, or a part of the work
  {"event":"problem","error":…,"message":…}    a peer was turned away, or a conversation failed`;

/** Tells now and then how many bytes have passed so far. */
export function byteTeller(tell: Tell, did: 'written' | 'sent'): (bytes: number) => void {
  let last = performance.now();
  return (bytes) => {
    if (performance.now() - last < LINE_INTERVAL_MS) return;
    last = performance.now();
    tell({ event: 'progress', bytes }, `  ${formatBytes(bytes)} ${did}`);
  };
}
