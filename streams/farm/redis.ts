/** Connections to the Redis that holds a farm's queue. The libraries are optional, and loaded when a farm is used. */
import type * as Bull from 'bullmq';
import type { Redis } from 'ioredis';
import {
  QueueAddressError,
  QueueLibraryMissingError,
  QueueRefusedError,
  QueueUnreachableError,
  QueueVersionError,
} from '../../src/errors.js';

/** BullMQ works from 5.0 on; 6.2 is the oldest in which all that it uses is sound. */
const LEAST_VERSION = '6.2.0';
const CONNECT_TIMEOUT_MS = 10_000;
/** The longest pause between two tries to connect again. */
const LONGEST_PAUSE_MS = 3_000;

/** The keys of all farms begin with this. Braces keep them on one node of a cluster. */
export const KEY_PREFIX = '{mobe}';

/** An open connection to the queue of a farm. */
export interface FarmQueue {
  readonly bull: typeof Bull;
  readonly redis: Redis;
  /** The address without its password. */
  readonly name: string;
  close(): Promise<void>;
}

/** Callbacks of a connection. */
export interface QueueHooks {
  /** Called when the connection is lost and when it is back, with a sentence. */
  readonly onQueue?: ((sentence: string) => void) | undefined;
}

/** The address of a queue for messages: without user and password. */
export function queueName(address: string): string {
  const { protocol, host, pathname } = parse(address);
  return `${protocol}//${host}${pathname === '/' ? '' : pathname}`;
}

function parse(address: string): URL {
  let url: URL;
  try {
    url = new URL(address);
  } catch {
    throw new QueueAddressError('it is no address'); // the text itself may be a password
  }
  if (!/^rediss?:$/.test(url.protocol) || !url.hostname)
    throw new QueueAddressError(`"${url.protocol}//${url.host}" is no address of a Redis`);
  return url;
}

async function loadLibraries(): Promise<{ bull: typeof Bull; Redis: typeof Redis }> {
  try {
    const [bull, { Redis }] = await Promise.all([import('bullmq'), import('ioredis')]);
    return { bull, Redis };
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code !== 'ERR_MODULE_NOT_FOUND') throw error;
    throw new QueueLibraryMissingError(message.split('\n')[0] as string);
  }
}

/**
 * Connects. From then on, a lost connection is made again, and calls wait for it. Throws a `QueueAddressError`,
 * `QueueLibraryMissingError`, `QueueUnreachableError`, `QueueRefusedError` or `QueueVersionError`.
 */
export async function openQueue(address: string, { onQueue }: QueueHooks = {}): Promise<FarmQueue> {
  const name = queueName(address);
  const { bull, Redis } = await loadLibraries();
  await checkServer(
    new Redis(address, { lazyConnect: true, retryStrategy: () => null, connectTimeout: CONNECT_TIMEOUT_MS }),
    name,
  );
  const redis = new Redis(address, {
    maxRetriesPerRequest: null,
    connectTimeout: CONNECT_TIMEOUT_MS,
    retryStrategy: (tries) => Math.min(100 * 2 ** tries, LONGEST_PAUSE_MS),
  });
  let away = false;
  redis.on('error', (error) => {
    if (!away) onQueue?.(`The queue ${name} is away (${error.message}); waiting for it …`);
    away = true;
  });
  redis.on('close', () => {
    if (!away && redis.status !== 'end') onQueue?.(`The connection to the queue ${name} was lost; waiting for it …`);
    away = true;
  });
  redis.on('ready', () => {
    if (away) onQueue?.(`The queue ${name} is back.`);
    away = false;
  });
  return {
    ...{ bull, redis, name },
    async close() {
      away = true;
      redis.disconnect();
    },
  };
}

/** Connects once, so that a wrong address is an error and not a wait. */
async function checkServer(redis: Redis, name: string): Promise<void> {
  const shortVersion = LEAST_VERSION.replace(/\.0$/, '');
  let last: Error | undefined;
  redis.on('error', (error) => {
    last ??= error;
  });
  const silent = setTimeout(() => {
    last ??= new Error(`it did not answer for ${CONNECT_TIMEOUT_MS / 1000} s`);
    redis.disconnect();
  }, CONNECT_TIMEOUT_MS);
  try {
    await redis.connect();
    const info = await redis.info('server');
    const version = /^redis_version:(.*)$/m.exec(info)?.[1]?.trim() ?? 'of unknown version';
    if (version.localeCompare(LEAST_VERSION, 'en', { numeric: true }) < 0)
      throw new QueueVersionError(name, version, shortVersion);
  } catch (error) {
    if (error instanceof QueueVersionError) throw error;
    const { message } = last ?? (error as Error);
    if (/WRONGPASS|NOAUTH|NOPERM|invalid password|without any password/i.test(message))
      throw new QueueRefusedError(name, message.replace(/\.+$/, ''));
    // The first command is "HELLO", which came with Redis 6.
    if (/unknown command.*hello/i.test(message)) throw new QueueVersionError(name, 'before 6', shortVersion);
    throw new QueueUnreachableError(name, message || 'no answer');
  } finally {
    clearTimeout(silent);
    redis.disconnect();
  }
}
