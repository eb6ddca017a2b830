/** Options for the queue of a farm. Its address may hold a password, so it need not be an argument, which every process list shows. */
import { Option } from 'commander';
import { QueueAddressError } from '../errors.js';
import { readOptionFile } from './options.js';

/** Environment variable with the queue's address. */
export const QUEUE_VARIABLE = 'MOBE_QUEUE';

export const queue = (): Option =>
  new Option(
    '--queue <url>',
    `the queue: a Redis of version 6.2 or newer, or Valkey, redis://host:6379 or rediss://…; without it: the environment variable ${QUEUE_VARIABLE}`,
  );

export const queueFile = (): Option =>
  new Option(
    '--queue-file <file>',
    'file with the address of the queue, which keeps its password out of process lists',
  ).conflicts('queue');

/** The address of the queue from an option, a file or the environment. Throws `QueueAddressError` if there is none. */
export async function queueAddress(
  { queue, queueFile }: { readonly queue?: string; readonly queueFile?: string },
  env = process.env,
): Promise<string> {
  const address =
    queueFile === undefined ? (queue ?? env[QUEUE_VARIABLE]) : String(await readOptionFile('--queue-file', queueFile));
  if (!address?.trim()) throw new QueueAddressError('there is no address');
  return address.trim();
}
