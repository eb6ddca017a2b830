import { type Command, Option } from 'commander';
import type { Generation } from '../../streams/operations/generate.js';
import { formatBytes, formatSeconds } from '../format.js';
import type { GenerateOptions } from '../inference/run-options.js';
import { interruptible } from './interrupt.js';
import {
  engine,
  expertsPerToken,
  json,
  MODEL,
  maxMemory,
  positiveInteger,
  realNumber,
  threads,
  wholeNumber,
} from './options.js';
import { ca, cache, type PeerFlags, peerOptions, separatePeers, tokenFile } from './peers.js';

interface Flags extends GenerateOptions, PeerFlags {
  readonly prompt: string;
  readonly json?: boolean;
}

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .requiredOption('--prompt <text>', 'text to continue')
    .addOption(new Option('--max-new-tokens <n>', 'the most tokens to add').argParser(positiveInteger).default(256))
    .addOption(
      new Option('--temperature <t>', "0: always the most likely token; 1: the model's own probabilities")
        .argParser(realNumber)
        .default(0),
    )
    .addOption(
      new Option('--top-p <p>', 'choose only among the most likely tokens that together have this probability')
        .argParser(realNumber)
        .default(1),
    )
    .addOption(new Option('--seed <n>', 'seed of the random choices').argParser(wholeNumber).default(0))
    .addOption(expertsPerToken())
    .addOption(maxMemory())
    .addOption(engine())
    .addOption(threads())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .addHelpText(
      'after',
      `
The text goes to stdout while it is generated, and figures to stderr. With --json, both go to stdout in one object at the end.
Weights are read when they are needed and kept as far as --max-memory allows. Only experts that the router chooses are read.`,
    )
    .action(async (model: string, { prompt, json: asJson, ...flags }: Flags) => {
      const { generate } = await import('../../streams/operations/generate.js');
      const { peers: asked, others: options } = separatePeers(flags);
      const interruption = interruptible(() => process.stderr.write('\nstopping (Ctrl-C again stops at once) …\n'));
      try {
        const peers = await peerOptions(asked);
        const run = generate(model, prompt, options, { signal: interruption.signal, peers });
        let step = await run.next();
        let text = '';
        for (; !step.done; step = await run.next()) {
          if (asJson) text += step.value;
          else process.stdout.write(step.value);
        }
        if (asJson) process.stdout.write(`${JSON.stringify({ prompt, text, ...step.value }, null, 2)}\n`);
        else {
          process.stdout.write('\n');
          process.stderr.write(`${describe(step.value)}\n`);
        }
      } finally {
        interruption.stop();
      }
    });
}

const REASONS = {
  end: 'the model ended the text',
  length: 'as many as requested',
  context: "the model's context is full",
} as const;

function describe(generation: Generation): string {
  const { promptTokens, promptSeconds, newTokens, tokensPerSecond, stopped, bytesRead, peakRssBytes } = generation;
  const rate = tokensPerSecond === undefined ? '' : `, ${tokensPerSecond.toPrecision(3)} tokens/s`;
  return [
    `${promptTokens} tokens of prompt in ${formatSeconds(promptSeconds)}`,
    `${newTokens} new (${REASONS[stopped]})${rate}`,
    `${formatBytes(bytesRead)} read, peak memory ${formatBytes(peakRssBytes)}`,
  ].join('; ');
}
