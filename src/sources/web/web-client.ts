/** HTTP requests: connections, redirects, stalls. What answers mean is decided elsewhere. */
import { type ClientRequest, Agent as HttpAgent, request as httpRequest, type IncomingMessage } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import { BadRedirectError } from '../../errors.js';
import { VERSION } from '../../version.js';
import { type BulkConnection, openBulkConnection } from './bulk-connection.js';
import { TryAgain } from './try-again.js';

/** The most requests at a time. Storage hosts give each connection a share; more than this is not faster. */
const MOST_REQUESTS = 8;
const MOST_REDIRECTS = 5;
/** The body of an answer that is not wanted is read up to this size, so that its connection can be used again. */
const MOST_UNWANTED_BYTES = 64 * 1024;

/** Ranges are of the bytes as stored. */
const OWN_HEADERS = { 'user-agent': `mobe-stream/${VERSION}`, 'accept-encoding': 'identity' };

/** Bodies from here on are sent only when the server has said that it wants them (RFC 9110, 10.1.1). */
const EXPECTED_BYTES = 1024 * 1024;
/** A server that says nothing for so long is sent the body. */
const EXPECT_MS = 1000;
/** A server that puts together what it was sent may be silent for this many times as long as others. */
const SLOW = 10;

/** The body of a request. It is read again for each attempt. */
export interface Body {
  readonly bytes: number;
  chunks(): AsyncIterable<Uint8Array>;
}

export interface WebRequest {
  readonly method: 'GET' | 'HEAD' | 'PUT' | 'POST' | 'DELETE';
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  readonly body?: Body;
  /** Whether the server may work for minutes before it answers. */
  readonly slow?: boolean;
  /** Whether a long body is expected. */
  readonly bulk?: boolean;
  /** Decides whether a redirect is followed. Without it, all are. */
  readonly follow?: (target: URL, from: URL) => boolean;
}

/** An answer whose body has not been read. */
export interface Answer {
  readonly status: number;
  readonly headers: IncomingMessage['headers'];
  /** The address that answered, after redirects. */
  readonly url: URL;
  /** Reads the body. Throws if it ends early. */
  pour(onChunk: (chunk: Uint8Array) => void): Promise<void>;
  /** Reads a body of at most `most` bytes; undefined if it is larger. */
  bytes(most: number): Promise<Buffer | undefined>;
}

/** Makes requests, and keeps connections open from one to the next. */
export class WebClient {
  private readonly http = new HttpAgent({ keepAlive: true });
  private readonly https = new HttpsAgent({ keepAlive: true });
  /** Connections for long ranges that are not in use, by origin. */
  private readonly idle = new Map<string, BulkConnection[]>();
  /** Origins whose answers such connections do not understand. */
  private readonly unusual = new Set<string>();
  private free = MOST_REQUESTS;
  private readonly waiting: Array<() => void> = [];

  /** @param signal ends all requests */
  constructor(
    private readonly stallMs: number,
    private readonly signal?: AbortSignal,
  ) {}

  /**
   * Sends a request, follows redirects, and hands the answer to `use`. Credentials (`Authorization`, `Cookie`) are not sent to
   * another origin than the first. Throws `TryAgain` if nothing comes for `stallMs`, and the errors of `node:http`.
   */
  async exchange<T>(wanted: WebRequest, use: (answer: Answer) => Promise<T>): Promise<T> {
    if (this.free > 0) this.free--;
    else await new Promise<void>((resolve) => this.waiting.push(resolve));
    try {
      const { follow = () => true } = wanted;
      const first = new URL(wanted.url);
      let url = first;
      for (let redirects = 0; ; redirects++) {
        const headers = url.origin === first.origin ? wanted.headers : withoutCredentials(wanted.headers);
        const read = async (answer: Answer): Promise<{ value: T } | { target: URL }> => {
          const target = redirectTarget(answer);
          if (!target || !follow(target, url)) return { value: await use(answer) };
          if (redirects === MOST_REDIRECTS) throw new BadRedirectError(first.host, 'it redirects in a circle');
          if (target.protocol !== url.protocol && target.protocol !== 'https:')
            throw new BadRedirectError(first.host, `it redirects to ${target.protocol}//${target.host}`);
          await answer.bytes(MOST_UNWANTED_BYTES);
          return { target };
        };
        const result =
          wanted.bulk && !this.unusual.has(url.origin)
            ? await this.sendBulk(url, headers, read)
            : await this.send(wanted, url, headers, read);
        if ('value' in result) return result.value;
        url = result.target;
      }
    } finally {
      const next = this.waiting.shift();
      if (next) next();
      else this.free++;
    }
  }

  private async send<T>(
    { method, body, slow = false }: Pick<WebRequest, 'method' | 'body' | 'slow'>,
    url: URL,
    headers: Readonly<Record<string, string>>,
    use: (answer: Answer) => Promise<T>,
  ): Promise<T> {
    const options = {
      method,
      headers: { ...OWN_HEADERS, ...headers, ...(body && bodyHeaders(body)) },
      ...(this.signal && { signal: this.signal }),
    };
    const request =
      url.protocol === 'https:'
        ? httpsRequest(url, { ...options, agent: this.https })
        : httpRequest(url, { ...options, agent: this.http });
    const stall = watch(request, this.stallMs * (slow ? SLOW : 1));
    let message: IncomingMessage | undefined;
    try {
      message = await new Promise<IncomingMessage>((resolve, reject) => {
        request.once('response', resolve).on('error', reject);
        if (body) sendBody(request, body, stall.progress).catch(reject);
        else request.end();
      });
      stall.progress();
      return await use(answerOf(message, url, method, stall.progress));
    } catch (error) {
      throw stall.stalled() ? new TryAgain(`nothing came for ${this.stallMs / 1000} s`) : error;
    } finally {
      stall.stop();
      // The connection is used again if the body was read to its end.
      if (!message?.readableEnded) request.destroy();
    }
  }

  /** `send` for a long range. */
  private async sendBulk<T>(
    url: URL,
    headers: Readonly<Record<string, string>>,
    use: (answer: Answer) => Promise<T>,
  ): Promise<T> {
    const idle = this.idle.get(url.origin) ?? [];
    this.idle.set(url.origin, idle);
    let connection = idle.pop();
    while (connection && !connection.reusable) connection = idle.pop();
    connection ??= openBulkConnection(url);
    connection.hold(true);
    const stall = watch(connection, this.stallMs);
    try {
      const { status, headers: told, length, pour } = await connection.get(url, { ...OWN_HEADERS, ...headers });
      stall.progress();
      if (status >= 300 || (status === 206 && length !== undefined))
        return await use({
          ...{ status, headers: told, url },
          pour: (onChunk) =>
            pour((chunk) => {
              stall.progress();
              onChunk(chunk);
            }),
          // The body of a refusal is not needed.
          bytes: async () => undefined,
        });
    } catch (error) {
      throw stall.stalled() ? new TryAgain(`nothing came for ${this.stallMs / 1000} s`) : error;
    } finally {
      stall.stop();
      connection.hold(false);
      if (connection.reusable) idle.push(connection);
      else connection.destroy();
    }
    this.unusual.add(url.origin);
    return this.send({ method: 'GET' }, url, headers, use);
  }

  /** Closes the connections that are not in use. A later request opens new ones. */
  close(): void {
    for (const { freeSockets } of [this.http, this.https])
      for (const sockets of Object.values(freeSockets)) for (const socket of sockets ?? []) socket.destroy();
    for (const connections of this.idle.values()) for (const connection of connections.splice(0)) connection.destroy();
  }
}

const bodyHeaders = ({ bytes }: Body): Record<string, string | number> => ({
  'content-length': bytes,
  ...(bytes >= EXPECTED_BYTES && { expect: '100-continue' }),
});

/** Sends a body as fast as the connection takes it, and stops when the answer comes early. */
async function sendBody(request: ClientRequest, { bytes, chunks }: Body, progress: () => void): Promise<void> {
  let answered = false;
  request.once('response', () => {
    answered = true;
  });
  if (bytes >= EXPECTED_BYTES) {
    request.flushHeaders();
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, EXPECT_MS);
      for (const event of ['continue', 'response', 'close']) request.once(event, () => resolve());
      request.once('close', () => clearTimeout(timer));
    });
  }
  for await (const chunk of chunks()) {
    if (answered) return;
    await new Promise<void>((resolve, reject) => request.write(chunk, (error) => (error ? reject(error) : resolve())));
    progress();
  }
  if (!answered) request.end();
}

/** Ends a request when nothing has come for too long. */
function watch(request: Pick<BulkConnection, 'destroy'>, stallMs: number) {
  let stalled = false;
  const timer = setTimeout(() => {
    stalled = true;
    request.destroy(new Error('stalled'));
  }, stallMs);
  return {
    progress: () => void timer.refresh(),
    stop: () => clearTimeout(timer),
    stalled: () => stalled,
  };
}

function answerOf(message: IncomingMessage, url: URL, method: string, progress: () => void): Answer {
  const pour = (onChunk: (chunk: Uint8Array) => void): Promise<void> =>
    new Promise((resolve, reject) => {
      const early = (): void => reject(new TryAgain('the connection was cut before the end of the answer'));
      message
        .on('data', (chunk: Uint8Array) => {
          progress();
          try {
            onChunk(chunk);
          } catch (error) {
            reject(error);
            message.destroy();
          }
        })
        .once('end', () => (message.complete ? resolve() : early()))
        .once('error', early)
        .once('close', early); // after "end" it changes nothing
    });
  return {
    status: message.statusCode ?? 0,
    headers: message.headers,
    url,
    pour,
    async bytes(most) {
      if (method !== 'HEAD' && Number(message.headers['content-length'] ?? 0) > most) return undefined;
      const chunks: Uint8Array[] = [];
      let length = 0;
      const tooLong = new Error('too long');
      try {
        await pour((chunk) => {
          length += chunk.byteLength;
          if (length > most) throw tooLong;
          chunks.push(chunk);
        });
      } catch (error) {
        if (error === tooLong) return undefined;
        throw error;
      }
      return Buffer.concat(chunks);
    },
  };
}

const REDIRECTS: ReadonlySet<number> = new Set([301, 302, 303, 307, 308]);

/** Where an answer redirects to. */
export function redirectTarget({ status, headers, url }: Answer): URL | undefined {
  if (!REDIRECTS.has(status) || headers.location === undefined || !URL.canParse(headers.location, url.href))
    return undefined;
  const target = new URL(headers.location, url);
  return /^https?:$/.test(target.protocol) ? target : undefined;
}

const withoutCredentials = (headers: Readonly<Record<string, string>>): Record<string, string> =>
  Object.fromEntries(Object.entries(headers).filter(([name]) => !/^(?:authorization|cookie)$/i.test(name)));
