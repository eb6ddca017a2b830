/** What the commands that score a model share: its options, the text, progress, interruption. */
import type { Command } from 'commander';
import type { EvaluateHooks } from '../../streams/operations/evaluate.js';
import { OptionError } from '../errors.js';
import type { EvaluateOptions } from '../inference/run-options.js';
import { interruptible } from './interrupt.js';
import { engine, expertsPerToken, maxMemory, positiveInteger, readOptionFile, threads } from './options.js';
import { ca, type PeerFlags, peerOptions, tokenFile } from './peers.js';
import { LINE_INTERVAL_MS } from './tell.js';

export interface ScoringFlags extends EvaluateOptions, PeerFlags {}

export const addScoringOptions = (command: Command): Command =>
  command
    .option('--against <source>', 'also compare with this model: KL divergence, agreement, error of each layer')
    .option('--window <n>', "tokens scored together (default: the model's context, at most 2048)", positiveInteger)
    .addOption(expertsPerToken())
    .addOption(maxMemory())
    .addOption(engine())
    .addOption(threads())
    .addOption(tokenFile())
    .addOption(ca());

/** Hands `work` what scoring needs; shows how far it is. */
export async function scoring<T>(
  { tokenFile: tokens, ca: authority, ...options }: ScoringFlags,
  work: (options: EvaluateOptions, hooks: EvaluateHooks) => Promise<T>,
): Promise<T> {
  const line = progressLine();
  const interruption = interruptible(() => line.write('stopping (once more to stop at once) …'));
  try {
    return await work(options, {
      signal: interruption.signal,
      peers: await peerOptions({ tokenFile: tokens, ca: authority }),
      onWindow: (model, done, windows) => line.update(`${model}: window ${done} of ${windows}`),
    });
  } finally {
    line.clear();
    interruption.stop();
  }
}

export async function readText(file: string): Promise<string> {
  const bytes = await readOptionFile('--text', file);
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new OptionError('--text', `${file} is not UTF-8`);
  }
}

/** One line on stderr that changes, or now and then a new one where it is no terminal. */
function progressLine() {
  let last = performance.now();
  const clear = (): void => void (process.stderr.isTTY && process.stderr.write('\r\x1b[K'));
  return {
    clear,
    write: (text: string): void => void process.stderr.write(`${text}\n`),
    update(text: string): void {
      clear();
      if (process.stderr.isTTY) process.stderr.write(text);
      else if (performance.now() - last > LINE_INTERVAL_MS) {
        process.stderr.write(`${text}\n`);
        last = performance.now();
      }
    },
  };
}
