import { Command } from 'commander';
import { type Evaluation, evaluate, type ModelScore } from '../../streams/evaluate.js';
import { OptionError } from '../errors.js';
import { formatBytes, formatPercent } from '../format.js';
import type { EvaluateOptions } from '../inference/options.js';
import { interruptible } from './interrupt.js';
import {
  engine,
  expertsPerToken,
  json,
  MODEL,
  maxMemory,
  positiveInteger,
  readOptionFile,
  threads,
} from './options.js';
import { ca, type PeerFlags, peerOptions, tokenFile } from './peers.js';
import { LINE_INTERVAL_MS } from './progress.js';
import { formatTable, left, right } from './table.js';

interface Flags extends EvaluateOptions, PeerFlags {
  readonly text: string;
  readonly json?: boolean;
}

export function evalCommand(): Command {
  return new Command('eval')
    .description('score models on a text: negative log-likelihood and perplexity, and what a conversion lost')
    .argument('<model...>', MODEL[1])
    .requiredOption('--text <file>', 'UTF-8 text to score')
    .option('--against <source>', 'also compare with this model: KL divergence, agreement, error of each layer')
    .option('--window <n>', "tokens scored together (default: the model's context, at most 2048)", positiveInteger)
    .addOption(expertsPerToken())
    .addOption(maxMemory())
    .addOption(engine())
    .addOption(threads())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(json())
    .action(async (models: string[], flags: Flags) => {
      const { text: file, json: asJson, tokenFile: tokens, ca: authority, ...options } = flags;
      const text = await readText(file);
      const line = progressLine();
      const interruption = interruptible(() => line.write('stopping (once more to stop at once) …'));
      try {
        const peers = await peerOptions({ tokenFile: tokens, ca: authority });
        const result = await evaluate(models, text, options, {
          signal: interruption.signal,
          peers,
          onWindow: (model, done, windows) => line.update(`${model}: window ${done} of ${windows}`),
        });
        line.clear();
        process.stdout.write(`${asJson ? JSON.stringify(result, null, 2) : describe(result)}\n`);
      } finally {
        line.clear();
        interruption.stop();
      }
    });
}

async function readText(file: string): Promise<string> {
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

function describe({ models, window, textBytes, engine: { name, device }, peakRssBytes }: Evaluation): string {
  const compared = models.some(({ comparison }) => comparison);
  const reduced = models.some((it) => it.expertsPerToken !== undefined);
  const table = formatTable(
    [
      left('model'),
      ...(reduced ? [right('experts')] : []),
      right('nll/token'),
      right('nll/byte'),
      right('perplexity'),
      ...(compared ? [right('KL'), right('same top-1')] : []),
      right('tokens/s'),
    ],
    models.map(({ comparison, ...it }) => [
      it.model,
      ...(reduced ? [String(it.expertsPerToken ?? '')] : []),
      it.nll.toFixed(5),
      it.nllPerByte.toFixed(5),
      it.perplexity.toFixed(4),
      ...(compared
        ? [comparison?.divergence.toFixed(5) ?? '', comparison ? formatPercent(comparison.agreement) : '']
        : []),
      it.tokensPerSecond.toPrecision(3),
    ]),
  );
  const [{ windows, predictions }] = models as [ModelScore];
  const facts = `${formatBytes(textBytes)} of text in ${windows} windows of ${window} tokens, ${predictions} predictions; nats; ${name} on ${device}; peak memory ${formatBytes(peakRssBytes)}`;
  return [table, compared ? layerTable(models) : '', facts].filter(Boolean).join('\n\n');
}

/** Relative errors of the hidden states, a column for each model. */
function layerTable(models: readonly ModelScore[]): string {
  const errors = models.flatMap(({ comparison }) => (comparison ? [comparison.layerErrors] : []));
  const names = models.filter(({ comparison }) => comparison).map(({ model }) => right(model));
  return formatTable(
    [right('error after layer'), ...names],
    (errors[0] ?? []).map((_, layer) => [String(layer), ...errors.map((own) => (own[layer] as number).toFixed(4))]),
  );
}
