/** Options for other machines: token, certificates, and the address to listen on. */
import { InvalidArgumentError, Option } from 'commander';
import type { ListenAt, PeerOptions } from '../../streams/machines/peer-options.js';
import { OptionError } from '../errors.js';
import { formatSeconds, printable } from '../format.js';
import type { Listener } from '../transport/listen.js';
import { readToken, TOKEN_VARIABLE } from '../transport/token.js';
import { interruptible } from './interrupt.js';
import { readOptionFile } from './options.js';
import { progressLine } from './progress-line.js';
import type { Tell } from './tell.js';

export interface PeerFlags {
  readonly tokenFile?: string | undefined;
  readonly ca?: string | undefined;
  readonly cache?: boolean | undefined;
}

export interface ListenFlags {
  readonly listen: { host: string; port: number };
  readonly tokenFile?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
}

export const tokenFile = (): Option =>
  new Option(
    '--token-file <file>',
    `file with the token that both sides share (default: the environment variable ${TOKEN_VARIABLE})`,
  );
export const ca = (): Option =>
  new Option('--ca <file>', 'file with the certificate (PEM) to trust for wss://, instead of the public authorities');
export const cache = (): Option =>
  new Option(
    '--cache',
    'keep the files of hf:// models in the cache of the Hugging Face hub (HF_HOME), where other commands and programs find them; they are downloaded whole',
  );
export const workers = (): Option =>
  new Option(
    '--workers <urls>',
    'machines that fit instead of this one ("mobe worker"), comma-separated: ws://a:7000,ws://b:7000',
  ).argParser((text) => text.split(',').map((url) => url.trim()));
export const listenAt = (): Option =>
  new Option(
    '--listen <host:port>',
    'address to listen on, e.g. 0.0.0.0:7000; other addresses than loopback need a token',
  )
    .argParser(hostAndPort)
    .makeOptionMandatory();
export const tlsCert = (): Option =>
  new Option('--tls-cert <file>', 'file with the certificate (PEM); peers then connect to wss://');
export const tlsKey = (): Option =>
  new Option('--tls-key <file>', 'file with the private key of the certificate (PEM)');

/** Parses "host:port" or "[::1]:port". Port 0 means any free port. */
export function hostAndPort(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (!match || port > 65535) throw new InvalidArgumentError('Expected host:port, e.g. 127.0.0.1:7000 or [::]:7000.');
  return { host: (match[1] ?? match[2]) as string, port };
}

const readIf = async (option: string, file: string | undefined): Promise<Buffer | undefined> =>
  file === undefined ? undefined : readOptionFile(option, file);

/** Says on stderr that a server is waited for, so that a wait of minutes does not look like a hang. */
function tellWait(reason: string, ms: number): void {
  progressLine().clear();
  process.stderr.write(`${printable(reason)}; next try in ${formatSeconds(ms / 1000)}\n`);
}

/** Divides the flags of a command into those of `peerOptions` and all others. */
export function separatePeers<Flags extends PeerFlags>({ tokenFile, ca, cache, ...others }: Flags) {
  return { peers: { tokenFile, ca, cache }, others };
}

export async function peerOptions(flags: PeerFlags): Promise<PeerOptions> {
  return {
    ...{ token: await readToken(flags.tokenFile), ca: await readIf('--ca', flags.ca), onWait: tellWait },
    cache: flags.cache,
  };
}

export async function listenOptions({ listen, ...flags }: ListenFlags): Promise<ListenAt> {
  const [cert, key] = [await readIf('--tls-cert', flags.tlsCert), await readIf('--tls-key', flags.tlsKey)];
  if ((cert === undefined) !== (key === undefined)) throw new OptionError('--tls-cert', 'and --tls-key go together');
  return { ...listen, token: await readToken(flags.tokenFile), tls: cert && key && { cert, key } };
}

/** Prints where a service listens, and runs it until it is interrupted or `done` settles. */
export async function runService(listener: Listener, what: string, tell: Tell, done?: Promise<unknown>): Promise<void> {
  const { url } = listener;
  tell({ event: 'listening', url }, `${what} at ${url} (Ctrl-C ends it)`);
  // A read from a server that has stopped answering does not keep the process.
  const { signal, stop } = interruptible(() => {});
  const interrupted = new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve()));
  try {
    await Promise.race([interrupted, ...(done ? [done] : [])]);
  } finally {
    await listener.close();
    stop();
  }
}
