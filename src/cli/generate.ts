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
import { ca, type PeerFlags, peerOptions, tokenFile } from './peers.js';

interface Flags extends GenerateOptions, PeerFlags {
  readonly prompt: string;
  readonly json?: boolean;
}

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .requiredOption('--prompt <text>', 'what to continue')
    .addOption(new Option('--max-new-tokens <n>', 'most tokens to add').argParser(positiveInteger).default(256))
    .addOption(
      new Option('--temperature <t>', '0: always the most likely token; 1: as the model has it')
        .argParser(realNumber)
        .default(0),
    )
    .addOption(
      new Option('--top-p <p>', 'choose among the most likely tokens that together have this probability')
        .argParser(realNumber)
        .default(1),
    )
    .addOption(new Option('--seed <n>', 'of the choices').argParser(wholeNumber).default(0))
    .addOption(expertsPerToken())
    .addOption(maxMemory())
    .addOption(engine())
    .addOption(threads())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(json())
    .addHelpText(
      'after',
      `
The text goes to stdout as it comes, figures to stderr; with --json both go to stdout in one object, once the text is complete. Weights are read when they are needed and kept within --max-memory:
of the experts only those that the router picks.`,
    )
    .action(async (model: string, { prompt, tokenFile: file, ca: authority, json: asJson, ...options }: Flags) => {
      const { generate } = await import('../../streams/operations/generate.js');
      const interruption = interruptible(() => process.stderr.write('\nstopping (once more to stop at once) …\n'));
      try {
        const peers = await peerOptions({ tokenFile: file, ca: authority });
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

const REASONS = { end: 'the model ended it', length: 'as many as asked for', context: 'its context is full' } as const;

function describe(generation: Generation): string {
  const { promptTokens, promptSeconds, newTokens, tokensPerSecond, stopped, bytesRead, peakRssBytes } = generation;
  const rate = tokensPerSecond === undefined ? '' : `, ${tokensPerSecond.toPrecision(3)} tokens/s`;
  return [
    `${promptTokens} tokens of prompt in ${formatSeconds(promptSeconds)}`,
    `${newTokens} new (${REASONS[stopped]})${rate}`,
    `${formatBytes(bytesRead)} read, peak memory ${formatBytes(peakRssBytes)}`,
  ].join('; ');
}
