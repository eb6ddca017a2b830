import { createServer as createHttpServer, type IncomingMessage } from 'node:http';
import { createServer as createHttpsServer } from 'node:https';
import { type AddressInfo, isIPv6, type Socket } from 'node:net';
import type { Duplex } from 'node:stream';
import { WebSocketServer } from 'ws';
import {
  InterruptedError,
  InvalidFrameError,
  ListenError,
  PeerTimeoutError,
  ProtocolError,
  TokenRequiredError,
  UnauthorisedError,
  WrongServiceError,
} from '../errors.js';
import { Channel, helloError } from './channel.js';
import { encodeFrame } from './encode-frame.js';
import type { Hello } from './frame-header.js';
import {
  DEFAULT_CREDIT_BYTES,
  HELLO_TIMEOUT_MS,
  MAX_SESSIONS,
  PROTOCOL_VERSION,
  RESUME_TIMEOUT_MS,
  SILENCE_TIMEOUT_MS,
} from './limits.js';
import { createLink, type Link, SOCKET_OPTIONS } from './link.js';
import { bareHost, isLoopback } from './loopback.js';
import { isAuthorised } from './token.js';

/** Address, service and limits of a server. */
export interface ListenOptions {
  readonly host: string;
  /** 0 means any free port. */
  readonly port: number;
  /** Name of the offered service. Peers that request another get an error. */
  readonly service: string;
  /** Without a token, `host` must be a loopback address. */
  readonly token?: string | undefined;
  /** PEM. With it the address is `wss://`. */
  readonly tls?: { readonly key: string | Buffer; readonly cert: string | Buffer } | undefined;
  /** Most bytes held in memory for each session, each way. */
  readonly creditBytes?: number;
  readonly silenceTimeoutMs?: number;
  readonly resumeTimeoutMs?: number;
  readonly helloTimeoutMs?: number;
  /** A peer was refused, or its conversation ended with an error. Other peers are not affected. */
  readonly onProblem?: (error: Error) => void;
}

/** A running server. */
export interface Listener {
  readonly url: string;
  /** Ends every conversation and stops listening. */
  close(): Promise<void>;
}

/**
 * Accepts conversations. `converse` is called for each peer's channel. When it returns, the channel is closed; when it throws,
 * the peer gets the error. Throws a `TokenRequiredError` or a `ListenError`.
 */
export async function listen(options: ListenOptions, converse: (channel: Channel) => Promise<void>): Promise<Listener> {
  const { host, port, token, tls } = options;
  if (token === undefined && !isLoopback(host)) throw new TokenRequiredError(host);
  const sessions = new Map<string, Channel>();
  const webSockets = new WebSocketServer({ noServer: true, ...SOCKET_OPTIONS });
  const server = tls ? createHttpsServer(tls) : createHttpServer();
  server.headersTimeout = options.helloTimeoutMs ?? HELLO_TIMEOUT_MS;
  server.maxConnections = 2 * MAX_SESSIONS; // a session may connect again before its old connection is found to be broken
  server.on('request', (_request, response) => response.writeHead(426, { connection: 'close' }).end());
  server.on('upgrade', (request: IncomingMessage, socket: Duplex, head: Buffer) => {
    socket.on('error', () => {}); // `ws` has no listener yet
    const status = refusal(request, token);
    if (status !== undefined) {
      options.onProblem?.(new UnauthorisedError(peerName(request)));
      socket.end(`HTTP/1.1 ${status}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n`);
      return;
    }
    webSockets.handleUpgrade(request, socket, head, (ws) =>
      awaitHello(createLink(ws, request.socket), peerName(request), sessions, options, converse),
    );
  });
  const connections = new Set<Socket>();
  server.on('connection', (socket: Socket) => {
    connections.add(socket);
    socket.once('close', () => connections.delete(socket));
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', (error) => reject(new ListenError(`${host}:${port}`, error.message)));
    server.listen(port, bareHost(host), resolve);
  });
  const { port: bound } = server.address() as AddressInfo;
  return {
    url: `${tls ? 'wss' : 'ws'}://${isIPv6(bareHost(host)) ? `[${bareHost(host)}]` : host}:${bound}/`,
    async close() {
      for (const channel of sessions.values()) channel.fail(new InterruptedError());
      const closed = new Promise((resolve) => server.close(resolve));
      for (const socket of connections) socket.destroySoon();
      await closed;
    },
  };
}

/** The HTTP status for a refused connection; undefined if it is accepted. */
function refusal({ headers }: IncomingMessage, token: string | undefined): string | undefined {
  // Any web page may open a WebSocket to this machine. Browsers send an Origin header then; our peers never do.
  if (headers.origin !== undefined) return '403 Forbidden';
  if (token !== undefined && !isAuthorised(headers.authorization, token)) return '401 Unauthorized';
  return undefined;
}

const peerName = ({ socket }: IncomingMessage): string => `${socket.remoteAddress}:${socket.remotePort}`;

function awaitHello(
  link: Link,
  peer: string,
  sessions: Map<string, Channel>,
  options: ListenOptions,
  converse: (channel: Channel) => Promise<void>,
): void {
  const { helloTimeoutMs = HELLO_TIMEOUT_MS, onProblem } = options;
  const refuse = (error: Error, code: string, wanted?: string | number): void => {
    clearTimeout(timer);
    link.onFrame = () => {};
    onProblem?.(error);
    link.write(
      encodeFrame({ kind: 'error', code, message: error.message, ...(wanted === undefined ? {} : { wanted }) }),
    );
    link.close();
  };
  const timer = setTimeout(() => refuse(new PeerTimeoutError(peer, helloTimeoutMs / 1000), 'timeout'), helloTimeoutMs);
  link.onClose = () => clearTimeout(timer);
  link.onInvalid = (error) =>
    error.protocol === undefined
      ? refuse(helloError(peer, error), 'protocol')
      : refuse(helloError(peer, error), 'protocol-version', PROTOCOL_VERSION);
  link.onFrame = ({ header }) => {
    if (header.kind !== 'hello') return link.onInvalid(new InvalidFrameError(`the first is a ${header.kind} frame`));
    if (header.service !== options.service)
      return refuse(new WrongServiceError(peer, header.service, options.service), 'wrong-service', options.service);
    const known = sessions.get(header.session);
    if (!known && header.resume) return refuse(new ProtocolError(peer, 'its session is unknown'), 'unknown-session');
    if (!known && sessions.size >= MAX_SESSIONS) return refuse(new ListenError(peer, 'too many sessions'), 'busy');
    clearTimeout(timer);
    const channel = known ?? startSession(header.session, peer, sessions, options, converse);
    link.write(encodeFrame(answer(header, channel, known !== undefined, options)));
    channel.attach(link, header);
  };
}

const answer = (
  { session }: Hello,
  { received }: Channel,
  resume: boolean,
  { service, creditBytes = DEFAULT_CREDIT_BYTES }: ListenOptions,
): Hello => ({ kind: 'hello', protocol: PROTOCOL_VERSION, service, session, resume, received, credit: creditBytes });

function startSession(
  session: string,
  peer: string,
  sessions: Map<string, Channel>,
  options: ListenOptions,
  converse: (channel: Channel) => Promise<void>,
): Channel {
  const { creditBytes = DEFAULT_CREDIT_BYTES, silenceTimeoutMs = SILENCE_TIMEOUT_MS } = options;
  let detached: NodeJS.Timeout | undefined;
  const channel: Channel = new Channel({
    peer,
    creditBytes,
    silenceTimeoutMs,
    onAttached: () => clearTimeout(detached),
    onDetached(reason) {
      detached = setTimeout(() => channel.fail(reason), options.resumeTimeoutMs ?? RESUME_TIMEOUT_MS);
    },
    onOver(error) {
      clearTimeout(detached);
      sessions.delete(session);
      if (error) options.onProblem?.(error);
    },
  });
  sessions.set(session, channel);
  converse(channel)
    .then(() => channel.close())
    .catch((error) => channel.fail(error));
  return channel;
}
