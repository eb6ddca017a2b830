import { randomBytes } from 'node:crypto';
import type { IncomingMessage } from 'node:http';
import type { Socket } from 'node:net';
import WebSocket from 'ws';
import {
  CertificateError,
  InputError,
  PeerUrlError,
  ProtocolError,
  ProtocolVersionError,
  RemoteError,
  SessionLostError,
  UnauthorisedError,
  UnreachablePeerError,
  WrongServiceError,
} from '../errors.js';
import { backOff } from './back-off.js';
import { Channel, helloError, remoteError } from './channel.js';
import { encodeFrame } from './encode-frame.js';
import type { Header, Hello } from './frame-header.js';
import {
  CONNECT_TIMEOUT_MS,
  DEFAULT_CREDIT_BYTES,
  HELLO_TIMEOUT_MS,
  PROTOCOL_VERSION,
  RESUME_TIMEOUT_MS,
  SILENCE_TIMEOUT_MS,
} from './limits.js';
import { createLink, type Link, SOCKET_OPTIONS } from './link.js';
import { isLoopback } from './loopback.js';
import { authorization } from './token.js';

/** How to reach a peer. */
export interface ConnectOptions {
  /** Name of the requested service. */
  readonly service: string;
  readonly token?: string | undefined;
  /** PEM of the certificate to trust, in place of the public authorities. */
  readonly ca?: string | Buffer | undefined;
  /** Most bytes held in memory, each way. */
  readonly creditBytes?: number;
  /** How long the first connection is retried. */
  readonly connectTimeoutMs?: number;
  /** How long each later connection is retried. */
  readonly resumeTimeoutMs?: number;
  readonly silenceTimeoutMs?: number;
  /** The connection broke. The channel is connecting again. */
  readonly onDetached?: (reason: Error) => void;
}

/**
 * Starts a conversation with `ws://host:port/` or `wss://host:port/`. If the connection breaks, it is made again, with
 * growing pauses, and the conversation continues. Throws an `UnreachablePeerError`, or at once another error if trying again
 * would not help.
 */
export async function connect(url: string, options: ConnectOptions): Promise<Channel> {
  const peer = peerUrl(url);
  const { creditBytes = DEFAULT_CREDIT_BYTES, silenceTimeoutMs = SILENCE_TIMEOUT_MS, service } = options;
  const session = randomBytes(16).toString('hex');
  const over = new AbortController();
  let known = false;
  const hello = (): Hello => ({
    kind: 'hello',
    protocol: PROTOCOL_VERSION,
    service,
    session,
    resume: known,
    received: channel.received,
    credit: creditBytes,
  });
  const dial = (patienceMs: number): Promise<void> =>
    persist(peer, patienceMs, over.signal, () =>
      openLink(peer, options, hello(), (link, answer) => {
        known = true;
        channel.attach(link, answer);
      }),
    );
  const channel: Channel = new Channel({
    peer,
    creditBytes,
    silenceTimeoutMs,
    onDetached(reason) {
      options.onDetached?.(reason);
      dial(options.resumeTimeoutMs ?? RESUME_TIMEOUT_MS).catch((error) => channel.fail(error));
    },
    onOver: () => over.abort(),
  });
  await dial(options.connectTimeoutMs ?? CONNECT_TIMEOUT_MS);
  return channel;
}

function peerUrl(url: string): string {
  let parsed: URL;
  try {
    parsed = new URL(url);
  } catch {
    throw new PeerUrlError(url, 'it is not a URL');
  }
  const { protocol, username, password, href } = parsed;
  if (protocol !== 'ws:' && protocol !== 'wss:') throw new PeerUrlError(url, `its scheme is ${protocol}`);
  if (username || password) throw new PeerUrlError(parsed.host, 'a URL is no place for a password');
  return href;
}

/** Repeats an attempt until it succeeds, fails for good, or the time is up. */
async function persist(
  peer: string,
  patienceMs: number,
  over: AbortSignal,
  attempt: () => Promise<void>,
): Promise<void> {
  const started = performance.now();
  for (let failures = 0; !over.aborted; failures++) {
    try {
      return await attempt();
    } catch (error) {
      if (isFinal(error)) throw error;
      const waited = performance.now() - started;
      if (waited >= patienceMs) throw new UnreachablePeerError(peer, waited / 1000, (error as Error).message);
    }
    await backOff(failures, over).catch(() => {});
  }
}

const isFinal = (error: unknown): boolean =>
  error instanceof InputError ||
  error instanceof ProtocolError ||
  error instanceof SessionLostError ||
  (error instanceof RemoteError && !TEMPORARY.includes(error.remoteName));

/** Codes of refusals that may soon end. */
const TEMPORARY: readonly string[] = ['busy', 'timeout'];

/** Makes one connection and reads the peer's hello. `attach` is called in the same turn, because the next frame may follow at once. */
function openLink(
  peer: string,
  { token, ca }: ConnectOptions,
  hello: Hello,
  attach: (link: Link, answer: Hello) => void,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const ws = new WebSocket(peer, {
      ...SOCKET_OPTIONS,
      followRedirects: false,
      ...(token === undefined ? {} : { headers: { authorization: authorization(token) } }),
      ...(ca === undefined ? {} : { ca }),
      ...(needsMask(peer) ? {} : { generateMask: (mask: Buffer) => void mask.fill(0) }),
    });
    const fail = (error: Error): void => {
      clearTimeout(timer);
      ws.on('error', () => {}); // `terminate` causes an error event
      ws.terminate();
      reject(error);
    };
    const timer = setTimeout(
      () => fail(new Error(`it did not answer within ${HELLO_TIMEOUT_MS / 1000} s`)),
      HELLO_TIMEOUT_MS,
    );
    let socket: Socket | undefined;
    ws.once('upgrade', (response) => {
      socket = response.socket;
    });
    ws.once('unexpected-response', (_request, response) => fail(httpError(peer, response)));
    ws.once('error', (error) => fail(connectionError(peer, error)));
    ws.once('open', () => {
      const link = createLink(ws, socket as Socket);
      link.onClose = (reason) => fail(new Error(reason));
      link.onInvalid = (error) => fail(helloError(peer, error));
      link.onFrame = ({ header }) => {
        clearTimeout(timer);
        try {
          attach(link, checkAnswer(peer, header, hello));
          resolve();
        } catch (error) {
          fail(error as Error);
        }
      };
      link.write(encodeFrame(hello));
    });
  });
}

/**
 * RFC 6455 makes clients mask their bytes with random ones. This stops a script in a browser from sending bytes that a proxy
 * takes for HTTP. Masking costs more than half the rate. Within this machine and within TLS no proxy can read the bytes, so
 * the mask is zero there: valid on the wire, and free for both ends.
 */
function needsMask(url: string): boolean {
  const { protocol, hostname } = new URL(url);
  return protocol === 'ws:' && !isLoopback(hostname);
}

/** The peer's hello. Throws if the first frame is not a hello, or does not fit ours. */
function checkAnswer(peer: string, header: Header, ours: Hello): Hello {
  if (header.kind === 'hello') {
    if (header.service !== ours.service) throw new WrongServiceError(peer, header.service, ours.service);
    if (header.session !== ours.session) throw new ProtocolError(peer, 'it answered for another session');
    return header;
  }
  if (header.kind !== 'error') throw new ProtocolError(peer, `its first frame is a ${header.kind} frame`);
  const { code, wanted } = header;
  if (code === 'protocol-version') throw new ProtocolVersionError(peer, Number(wanted), ours.protocol);
  if (code === 'wrong-service') throw new WrongServiceError(peer, String(wanted), ours.service);
  throw remoteError(peer, header);
}

function httpError(peer: string, { statusCode }: IncomingMessage): Error {
  if (statusCode === 401) return new UnauthorisedError(peer);
  return new ProtocolError(peer, `it answered with HTTP status ${statusCode}`);
}

function connectionError(peer: string, error: NodeJS.ErrnoException): Error {
  const isCertificate = /CERT|SIGNATURE|ERR_TLS/.test(error.code ?? '');
  return isCertificate ? new CertificateError(peer, error.message) : error;
}
