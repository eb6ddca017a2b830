/** Common parts of the commands that score a model: options, text, progress, interruption. */
import type { Command } from 'commander';
import type { EvaluateHooks } from '../../streams/operations/evaluate.js';
import { OptionError } from '../errors.js';
import type { EvaluateOptions } from '../inference/run-options.js';
import { interruptible } from './interrupt.js';
import { engine, expertsPerToken, maxMemory, positiveInteger, readOptionFile, threads } from './options.js';
import { ca, cache, type PeerFlags, peerOptions, separatePeers, tokenFile } from './peers.js';
import { progressLine } from './progress-line.js';

export interface ScoringFlags extends EvaluateOptions, PeerFlags {}

export const addScoringOptions = (command: Command): Command =>
  command
    .option(
      '--against <source>',
      'also compare with this model, usually the source: KL divergence, agreement, error of each layer',
    )
    .option(
      '--window <n>',
      "tokens that are scored together (default: the model's context, at most 2048)",
      positiveInteger,
    )
    .addOption(expertsPerToken())
    .addOption(maxMemory())
    .addOption(engine())
    .addOption(threads())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache());

/** Runs `work` with scoring options and hooks, and shows its progress. */
export async function scoring<T>(
  flags: ScoringFlags,
  work: (options: EvaluateOptions, hooks: EvaluateHooks) => Promise<T>,
): Promise<T> {
  const { peers, others } = separatePeers(flags);
  const line = progressLine();
  const interruption = interruptible(() => line.write('stopping (Ctrl-C again stops at once) …'));
  try {
    return await work(others, {
      signal: interruption.signal,
      peers: await peerOptions(peers),
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
