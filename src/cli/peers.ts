/** Flags and environment for other machines: the token, certificates, where to listen. */
import { InvalidArgumentError, Option } from 'commander';
import type { ListenAt, PeerOptions } from '../../streams/machines/peer-options.js';
import { OptionError } from '../errors.js';
import type { Listener } from '../transport/listen.js';
import { readToken, TOKEN_VARIABLE } from '../transport/token.js';
import { readOptionFile } from './options.js';
import type { Tell } from './tell.js';

export interface PeerFlags {
  readonly tokenFile?: string | undefined;
  readonly ca?: string | undefined;
}

export interface ListenFlags {
  readonly listen: { host: string; port: number };
  readonly tokenFile?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
}

export const tokenFile = (): Option =>
  new Option('--token-file <file>', `holds the token both sides share (default: the environment's ${TOKEN_VARIABLE})`);
export const ca = (): Option =>
  new Option('--ca <file>', 'certificate (PEM) to trust for wss://, instead of the public authorities');
export const workers = (): Option =>
  new Option(
    '--workers <urls>',
    'machines that fit ("mobe worker"), comma-separated: ws://a:7000,ws://b:7000',
  ).argParser((text) => text.split(',').map((url) => url.trim()));
export const listenAt = (): Option =>
  new Option('--listen <host:port>', 'address to listen on; beyond loopback a token is needed')
    .argParser(hostAndPort)
    .makeOptionMandatory();
export const tlsCert = (): Option => new Option('--tls-cert <file>', 'certificate (PEM); peers then use wss://');
export const tlsKey = (): Option => new Option('--tls-key <file>', 'its private key (PEM)');

/** "host:port", "[::1]:port"; port 0: any free one. */
export function hostAndPort(text: string): { host: string; port: number } {
  const match = /^(?:\[([0-9a-fA-F:.]+)\]|([^:[\]]+)):(\d{1,5})$/.exec(text);
  const port = Number(match?.[3]);
  if (!match || port > 65535) throw new InvalidArgumentError('Expected host:port, e.g. 127.0.0.1:7000 or [::]:7000.');
  return { host: (match[1] ?? match[2]) as string, port };
}

const readIf = async (option: string, file: string | undefined): Promise<Buffer | undefined> =>
  file === undefined ? undefined : readOptionFile(option, file);

export async function peerOptions(flags: PeerFlags): Promise<PeerOptions> {
  return { token: await readToken(flags.tokenFile), ca: await readIf('--ca', flags.ca) };
}

export async function listenOptions({ listen, ...flags }: ListenFlags): Promise<ListenAt> {
  const [cert, key] = [await readIf('--tls-cert', flags.tlsCert), await readIf('--tls-key', flags.tlsKey)];
  if ((cert === undefined) !== (key === undefined)) throw new OptionError('--tls-cert', 'and --tls-key go together');
  return { ...listen, token: await readToken(flags.tokenFile), tls: cert && key && { cert, key } };
}

/** Tells where a service listens, and runs it until it is interrupted, or until `done` settles. */
export async function runService(listener: Listener, what: string, tell: Tell, done?: Promise<unknown>): Promise<void> {
  const { url } = listener;
  tell({ event: 'listening', url }, `${what} at ${url} (Ctrl-C ends it)`);
  let interrupt: () => void = () => {};
  const interrupted = new Promise<void>((resolve) => {
    interrupt = resolve;
  });
  process.once('SIGINT', interrupt).once('SIGTERM', interrupt);
  try {
    await Promise.race([interrupted, ...(done ? [done] : [])]);
  } finally {
    process.off('SIGINT', interrupt).off('SIGTERM', interrupt);
    await listener.close();
  }
}
