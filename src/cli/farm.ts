import { Command, Option } from 'commander';
import { addFactorisationOptions, format } from './factorisation-options.js';
import {
  allowLarger,
  compressOptions,
  engine,
  force,
  json,
  MODEL,
  maxError,
  maxMemory,
  positiveInteger,
  positiveNumber,
  report,
  saveEvery,
  shardSize,
} from './options.js';
import { ca, peerOptions, tokenFile } from './peers.js';
import { queue, queueAddress, queueFile } from './queue-options.js';
import { jsonLines, teller } from './tell.js';

export function define(command: Command): void {
  command
    .addHelpText(
      'after',
      `
Examples
  mobe farm submit Qwen3-30B-A3B Qwen3-MoBE --queue redis://head:6379     puts the groups into a queue, and assembles the result
  mobe farm work --queue redis://head:6379                                on every machine that fits; any number, at any time
  mobe farm status --queue redis://head:6379                              what waits, runs, is done and failed; --json for programs

"mobe farm submit --help" and so on tell more. docs/cluster.md says how to set it up. It needs "npm install bullmq ioredis".`,
    )
    .addCommand(submit())
    .addCommand(work())
    .addCommand(status());
}

const subcommand = (name: string, description: string): Command =>
  new Command(name)
    .description(description)
    .showHelpAfterError('(--help tells more)')
    .exitOverride()
    .addOption(queue())
    .addOption(queueFile());

function submit(): Command {
  const command = subcommand('submit', 'compress with the workers of a farm; run again, it goes on')
    .argument(...MODEL)
    .argument('<out>', 'folder to write, new or empty; or ws://host:port/ of "mobe receive"')
    .addOption(
      new Option(
        '--factors <folder>',
        'folder that all machines see under this name, for the factors on their way (default: <out>.factors, removed in the end)',
      ),
    )
    .addOption(
      new Option('--tries <n>', 'how often a group may fail before it is given up (default: 3)').argParser(
        positiveInteger,
      ),
    )
    .addOption(format());
  return addFactorisationOptions(command)
    .addOption(shardSize())
    .addOption(maxError())
    .addOption(report())
    .addOption(allowLarger())
    .addOption(force())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(json())
    .addHelpText(
      'after',
      `
--engine, --threads and --batch-experts are those of every worker's fits, and decide bits. By default they are what this machine would take.`,
    )
    .action(async (model: string, out: string, { queue, queueFile, factors, tries, ...flags }) => {
      const { submitToFarm } = await import('../../streams/farm/submit.js');
      const { runAndPrint } = await import('./run.js');
      const address = await queueAddress({ queue, queueFile });
      const farm = {
        queue: address,
        factors,
        tries,
        onMessage: (text: string) => void process.stderr.write(`${text}\n`),
      };
      await runAndPrint(out, flags, (run) => submitToFarm(model, out, compressOptions(flags), farm, run));
    });
}

function work(): Command {
  return subcommand('work', 'take groups from the queue and fit them, until Ctrl-C')
    .addOption(engine().default('auto'))
    .addOption(
      new Option(
        '--jobs <n>',
        'groups that are fitted at once, each with the threads of its run (default: 1)',
      ).argParser(positiveInteger),
    )
    .addOption(maxMemory())
    .addOption(saveEvery())
    .addOption(
      new Option(
        '--lock-seconds <n>',
        'after this time without a sign of life, the groups of a worker go to others; the same for all workers (default: 120)',
      ).argParser(positiveNumber),
    )
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(jsonLines())
    .addHelpText(
      'after',
      `
With --json, stdout gets one object for each line: {"event":"ready","engine":…}, then "began", "fitted", "failed" and "stopped" with the
group, and "queue" when the connection is lost or back.`,
    )
    .action(async ({ queue, queueFile, json, tokenFile, ca, ...options }) => {
      const { describeEvent, workForFarm } = await import('../../streams/farm/work.js');
      const { interruptible } = await import('./interrupt.js');
      const tell = teller(json);
      const peers = await peerOptions({ tokenFile, ca });
      const address = await queueAddress({ queue, queueFile });
      const { signal, stop } = interruptible(() => process.stderr.write('stopping (Ctrl-C again stops at once) …\n'));
      const worker = await workForFarm(
        { ...options, queue: address, token: peers.token, ca: peers.ca as Buffer | undefined },
        (event) => tell({ ...event }, describeEvent(event)),
      );
      try {
        await Promise.race([worker.broken, new Promise((resolve) => signal.addEventListener('abort', resolve))]);
      } finally {
        await worker.close();
        stop();
      }
    });
}

function status(): Command {
  return subcommand('status', 'show what waits, runs, is done and failed, and when it will be finished')
    .addOption(json())
    .action(async ({ json, ...flags }) => {
      const { farmStatus } = await import('../../streams/farm/status.js');
      const { describeFarm } = await import('./describe-farm.js');
      const state = await farmStatus(await queueAddress(flags));
      process.stdout.write(json ? `${JSON.stringify(state, null, 2)}\n` : `${describeFarm(state)}\n`);
    });
}
