import type { PeerOptions } from '../../transport/peer-options.js';
import { persist, type ServerState, TryAgain } from './try-again.js';
import { WebClient } from './web-client.js';
import { WEB_TIMING, type WebOptions } from './web-options.js';

/** Whoever waits for longer than this is told. */
const MENTIONED_WAIT_MS = 5_000;
/** Lists of files and answers of an API. A page of the hub's tree has 1000 entries of some 300 bytes. */
const MOST_TEXT_BYTES = 64 * 1024 * 1024;

/** A client of one server, with the patience for it. */
export interface Web {
  readonly server: ServerState;
  readonly client: WebClient;
  /** `persist` with this server. */
  persist<T>(what: string, attempt: (progress: () => void) => Promise<T>): Promise<T>;
}

/** The part of `SourceOptions` that is for servers. */
export interface WebSourceOptions {
  readonly web?: WebOptions | undefined;
  readonly peers?: Pick<PeerOptions, 'onWait'> | undefined;
}

/** How a server is used to write. */
export interface WritingWeb {
  /** Ends all requests and waits. */
  readonly signal: AbortSignal;
}

/**
 * @param server its name without secrets
 * @param writing for sending files; without it they are read
 */
export function openWeb(
  server: string,
  limitRemedy: string,
  { web = {}, peers = {} }: WebSourceOptions,
  writing?: WritingWeb,
): Web {
  const { timing, onWait = peers.onWait } = web;
  const state: ServerState = { name: server, reached: false, limitRemedy, writing: writing !== undefined };
  const signal = writing?.signal;
  const all = { ...WEB_TIMING, ...timing };
  const told = (reason: string, ms: number): void => {
    if (ms >= MENTIONED_WAIT_MS) onWait?.(`${server}: ${reason}`, ms);
  };
  return {
    server: state,
    client: new WebClient(all.stallMs, signal),
    persist: (what, attempt) => persist(state, what, all, attempt, told, signal),
  };
}

/** Reads a text, for example an answer of an API. Throws `TryAgain` if it is too large. */
export async function textOf(answer: { bytes(most: number): Promise<Buffer | undefined> }): Promise<string> {
  const bytes = await answer.bytes(MOST_TEXT_BYTES);
  if (!bytes) throw new TryAgain(`it sends more than ${MOST_TEXT_BYTES} bytes where a list was asked for`);
  return bytes.toString('utf8');
}
