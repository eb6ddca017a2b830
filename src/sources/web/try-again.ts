/** Repeats requests that failed, for as long as that is worth it. */
import type { IncomingHttpHeaders } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';
import { MobeError, RateLimitedError, ServerFailedError, UploadFailedError } from '../../errors.js';
import type { WebTiming } from './web-options.js';

/** A failure after which the same request may succeed. */
export class TryAgain extends Error {
  /** @param toldMs the wait that the server asks for */
  constructor(
    reason: string,
    readonly toldMs?: number,
    /** Whether the server limits the rate of requests. */
    readonly limited = false,
  ) {
    super(reason);
  }
}

/** The state of a server, shared by all requests to it. */
export interface ServerState {
  /** The server, without secrets, as messages name it. */
  readonly name: string;
  /** Whether it has ever answered. */
  reached: boolean;
  /** What to do if it limits the rate of requests. */
  readonly limitRemedy: string;
  /** Whether files are sent to it; otherwise they are read. */
  readonly writing?: boolean;
}

/** A server may ask for this many waits without progress in between. */
const MOST_TOLD_WAITS = 20;

/** Codes of failures that a second attempt would meet again, as far as the server was never reached. */
const PERMANENT = /^(?:ENOTFOUND|ERR_INVALID_URL|EPROTO)$/;
/** Codes of certificates that are not trusted. */
const CERTIFICATE = /CERT|SELF_SIGNED|UNABLE_TO_VERIFY|UNABLE_TO_GET_ISSUER/;

/**
 * Runs `attempt` until it succeeds. It is repeated after a `TryAgain` and after failures of the network, later after each
 * failure, with jitter, so that several readers do not come back in step. `progress` starts the count anew. Any other error is
 * thrown at once. There are always two attempts. Throws `ServerFailedError` and `RateLimitedError` when patience ends.
 * @param what names what is read, in messages
 */
export async function persist<T>(
  server: ServerState,
  what: string,
  timing: WebTiming,
  attempt: (progress: () => void) => Promise<T>,
  onWait: (reason: string, ms: number) => void = () => {},
  signal?: AbortSignal,
): Promise<T> {
  const failed = (reason: string, tries: number, remedy?: string): MobeError =>
    server.writing
      ? new UploadFailedError(server.name, what, reason, tries, remedy)
      : new ServerFailedError(server.name, what, reason, tries, remedy);
  let [failures, tries, told, since] = [0, 0, 0, Date.now()];
  const progress = (): void => {
    server.reached = true;
    [failures, tries, told, since] = [0, 0, 0, Date.now()];
  };
  for (;;) {
    try {
      const result = await attempt(progress);
      server.reached = true;
      return result;
    } catch (error) {
      tries++;
      const reason = reasonOf(error);
      if (reason === undefined || signal?.aborted) throw error;
      const code = (error as NodeJS.ErrnoException).code ?? '';
      if (CERTIFICATE.test(code)) throw failed(reason, 1, 'Name a certificate to trust in NODE_EXTRA_CA_CERTS.');
      if (PERMANENT.test(code) && !server.reached) throw failed(reason, 1);
      const { toldMs, limited } = error instanceof TryAgain ? error : { toldMs: undefined, limited: false };
      if (toldMs !== undefined) {
        const seconds = Math.ceil(toldMs / 1000);
        if (toldMs > timing.longestToldWaitMs || ++told > MOST_TOLD_WAITS)
          throw limited
            ? new RateLimitedError(server.name, `it asks to wait for ${seconds} s`, server.limitRemedy)
            : failed(`${reason}, and it asks to wait for ${seconds} s`, tries);
        onWait(reason, toldMs);
        await sleep(toldMs + Math.random() * Math.min(1000, toldMs / 5), undefined, { signal });
        since += toldMs; // the server's own wait does not use up patience
        continue;
      }
      const full = Math.min(timing.mostWaitMs, timing.firstWaitMs * 2 ** failures++);
      const wait = full * (0.5 + Math.random() / 2);
      const patience = server.reached ? timing.patienceMs : timing.firstPatienceMs;
      if (tries > 1 && Date.now() + wait - since > patience)
        throw limited
          ? new RateLimitedError(server.name, `${tries} requests were refused`, server.limitRemedy)
          : failed(reason, tries);
      onWait(reason, wait);
      await sleep(wait, undefined, { signal });
    }
  }
}

/** Why an attempt failed, if another one may succeed; else undefined. */
function reasonOf(error: unknown): string | undefined {
  if (error instanceof TryAgain) return error.message;
  if (error instanceof MobeError || !(error instanceof Error)) return undefined;
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === undefined) return undefined; // a fault of this program
  if (code === 'ECONNRESET') return 'the connection was cut';
  if (code === 'ECONNREFUSED') return 'nothing listens at that address';
  if (code === 'ENOTFOUND') return 'there is no host of that name';
  return message === '' ? code : message;
}

/** Statuses after which the same request may succeed. */
const PASSING: ReadonlySet<number> = new Set([408, 425, 429, 500, 502, 503, 504]);

/** A `TryAgain` for an answer that refuses only for now; else undefined. */
export function passingRefusal(status: number, headers: IncomingHttpHeaders): TryAgain | undefined {
  if (!PASSING.has(status)) return undefined;
  const toldMs = status === 429 || status === 503 ? toldWait(headers) : undefined;
  return new TryAgain(`it answers with status ${status}`, toldMs, status === 429);
}

/**
 * The wait that a server asks for, in milliseconds: `Retry-After` (RFC 9110, 10.2.3), or `RateLimit` as the hub sends it, e.g.
 * `"api";r=0;t=55` (draft-ietf-httpapi-ratelimit-headers-09).
 */
export function toldWait(headers: IncomingHttpHeaders): number | undefined {
  const after = headers['retry-after']?.trim();
  if (after !== undefined && /^\d+$/.test(after)) return Number(after) * 1000;
  const date = Date.parse(after ?? '');
  if (!Number.isNaN(date)) return Math.max(0, date - Date.now());
  const limit = [headers.ratelimit ?? []].flat().join(',');
  // There may be several limits. The ones that are used up count.
  const waits = limit
    .split(',')
    .filter((it) => /;\s*r=0(?!\d)/.test(it))
    .flatMap((it) => /;\s*t=(\d+)/.exec(it)?.[1] ?? []);
  return waits.length ? Math.max(...waits.map(Number)) * 1000 : undefined;
}
