/**
 * Connections for long ranges. `node:http` allocates each 64 KiB of a body twice, which costs as much as three copies: with it this
 * program reads half as fast as curl (bench/download.ts). Here a body comes in one buffer that is used again and again. Only
 * plain answers with a length are understood; whatever else comes is asked for again through `node:http`.
 */
import type { IncomingHttpHeaders } from 'node:http';
import { isIP, type Socket, connect as tcpConnect } from 'node:net';
import { connect as tlsConnect } from 'node:tls';
import { TryAgain } from './try-again.js';

const BUFFER_BYTES = 256 * 1024;
/** Node's own limit is 16 KiB. */
const MOST_HEAD_BYTES = 64 * 1024;

/** Status and headers of an answer, and its body, which can be read once. */
export interface BulkAnswer {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  /** The length of the body; undefined if this answer is not understood. */
  readonly length: number | undefined;
  /** Hands over the body in pieces, each valid until the callback returns. Throws `TryAgain` if it ends early. */
  pour(onChunk: (chunk: Uint8Array) => void): Promise<void>;
}

export interface BulkConnection {
  /** Sends a GET. The answer before must have been read to its end. */
  get(url: URL, headers: Readonly<Record<string, string>>): Promise<BulkAnswer>;
  /** Whether another request can be sent. */
  readonly reusable: boolean;
  /** Whether the connection keeps the program running. */
  hold(held: boolean): void;
  destroy(reason?: Error): void;
}

/** Opens a connection to an origin. Errors are those of `node:net` and `node:tls`, at the first request. */
export function openBulkConnection(origin: URL): BulkConnection {
  /** Takes what comes. Returns false to get no more for now. */
  let take: (chunk: Uint8Array) => boolean = () => false;
  let fail: (error: Error) => void = () => {};
  let reusable = false;
  let failure: Error | undefined;
  const receive = (chunk: Uint8Array): boolean => {
    try {
      return take(chunk);
    } catch (error) {
      socket.destroy(error as Error);
      return false;
    }
  };
  const host = origin.hostname.replace(/^\[|\]$/g, '');
  const port = Number(origin.port || (origin.protocol === 'https:' ? 443 : 80));
  const onread = {
    buffer: new Uint8Array(BUFFER_BYTES),
    callback: (bytes: number, buffer: Uint8Array): boolean => receive(buffer.subarray(0, bytes)),
  };
  const socket: Socket =
    origin.protocol === 'https:'
      ? tlsConnect({ host, port, ALPNProtocols: ['http/1.1'], ...(!isIP(host) && { servername: host }) }).on(
          'data',
          (chunk: Uint8Array) => void (receive(chunk) || socket.pause()),
        )
      : tcpConnect({ host, port, noDelay: true, onread });
  socket
    .on('error', (error) => {
      failure ??= error;
    })
    .on('close', () => {
      reusable = false;
      fail(failure ?? new TryAgain('the connection was cut before the end of the answer'));
    });

  /** Waits until `step` returns a value for what has come. What it leaves of the last piece is given to the next step. */
  let rest: Uint8Array = new Uint8Array(0);
  const until = <T>(step: (chunk: Uint8Array) => { value: T; rest: Uint8Array } | undefined): Promise<T> =>
    new Promise((resolve, reject) => {
      fail = reject;
      take = (chunk) => {
        const done = step(chunk);
        if (!done) return true;
        rest = Uint8Array.from(done.rest); // the buffer is used again
        [take, fail] = [() => false, () => {}];
        resolve(done.value);
        return false;
      };
      const held = rest;
      rest = new Uint8Array(0);
      if (failure || socket.destroyed) reject(failure ?? new TryAgain('the connection was cut'));
      else if (held.byteLength === 0 || receive(held)) socket.resume();
    });

  return {
    get reusable() {
      return reusable && !socket.destroyed;
    },
    hold: (held) => void (held ? socket.ref() : socket.unref()),
    destroy: (reason) => void socket.destroy(reason),
    async get(url, headers) {
      reusable = false;
      socket.write(requestText(url, headers));
      const { status, headers: told, version } = await until(readHead());
      const length =
        told['transfer-encoding'] === undefined && /^\d+$/.test(told['content-length'] ?? '')
          ? Number(told['content-length'])
          : undefined;
      const kept = version === '1.1' && !/\bclose\b/i.test(told.connection ?? '');
      return {
        status,
        headers: told,
        length,
        async pour(onChunk) {
          let left = length ?? 0;
          const more = (chunk: Uint8Array) => {
            const own = chunk.subarray(0, left);
            left -= own.byteLength;
            onChunk(own);
            return left > 0 ? undefined : { value: undefined, rest: chunk.subarray(own.byteLength) };
          };
          if (left > 0) await until(more);
          reusable = kept && length !== undefined && rest.byteLength === 0;
        },
      };
    },
  };
}

function requestText(url: URL, headers: Readonly<Record<string, string>>): string {
  const lines = Object.entries({ host: url.host, ...headers }).map(([name, value]) => `${name}: ${value}`);
  if (lines.some((line) => /[^\t\x20-\xff]/.test(line)))
    throw new TypeError('a header with a character that none may have');
  return `GET ${url.pathname}${url.search} HTTP/1.1\r\n${lines.join('\r\n')}\r\n\r\n`;
}

interface Head {
  readonly status: number;
  readonly version: string;
  readonly headers: IncomingHttpHeaders;
}

/** Collects the lines before a body. Answers with status 1xx are followed by another one (RFC 9110, 15.2). */
function readHead(): (chunk: Uint8Array) => { value: Head; rest: Uint8Array } | undefined {
  let seen = Buffer.alloc(0);
  return (chunk) => {
    seen = Buffer.concat([seen, chunk]);
    for (;;) {
      const end = seen.indexOf('\r\n\r\n');
      if (end < 0) {
        if (seen.byteLength > MOST_HEAD_BYTES) throw new TryAgain('the headers of the answer are too long');
        return undefined;
      }
      const value = parseHead(seen.toString('latin1', 0, end));
      seen = seen.subarray(end + 4);
      if (value.status >= 200) return { value, rest: seen };
    }
  };
}

function parseHead(text: string): Head {
  const [first = '', ...lines] = text.split('\r\n');
  const [, version = '', status = ''] = /^HTTP\/(1\.[01]) (\d{3})(?: |$)/.exec(first) ?? [];
  if (status === '') throw new TryAgain('the answer is not HTTP/1.1');
  const headers: Record<string, string> = {};
  for (const line of lines) {
    const [, name = '', value = ''] = /^([^\s:]+):[ \t]*(.*?)[ \t]*$/.exec(line) ?? [];
    if (name === '') throw new TryAgain('the answer has a damaged header');
    const key = name.toLowerCase();
    // Two lengths could differ.
    headers[key] = headers[key] === undefined ? value : `${headers[key]}, ${value}`;
  }
  return { status: Number(status), version, headers };
}
