#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { VERSION } from '../version.js';
import { COMMANDS } from './commands.js';

const program = new Command('mobe')
  .description(
    'Makes Mixture-of-Experts checkpoints smaller by the MoBE factorisation (arXiv 2508.05257). Checkpoints are streamed:\nmemory stays within --max-memory, however large the model is.',
  )
  .version(VERSION)
  .addHelpText(
    'after',
    `
Start with
  mobe inspect <model>             show what is in a checkpoint
  mobe plan <model>                show what a compression would do, and how long it would take
  mobe compress <model> <out>      compress it
  mobe generate <out> --prompt …   let the compressed model continue a text
  mobe engines                     list the engines that can compute on this machine, and their speed

Results go to stdout, progress to stderr. --json prints one JSON object; serve, worker, receive and stream print one for each event.
Exit codes: 0 done, 1 failed while running, 2 wrong use or wrong input, 130 interrupted.`,
  )
  .showHelpAfterError('(mobe --help, or mobe <command> --help, tells more)')
  .exitOverride();

for (const { name, args, summary } of COMMANDS)
  program
    .command(name)
    .usage(`[options] ${args}`.trimEnd())
    .description(summary)
    .showHelpAfterError('(--help tells more)');
program.configureHelp({ subcommandTerm: (command) => `${command.name()} ${command.usage()}` });
program.hook('preSubcommand', (_, command) => load(command));

// The reader of a pipe may end first ("mobe inspect … | head"). A result that is itself sent there has an error of its own.
for (const stream of [process.stdout, process.stderr])
  stream.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') throw error;
  });

async function load(command: Command): Promise<void> {
  const entry = COMMANDS.find(({ name }) => name === command.name());
  (await entry?.load())?.define(command);
}

try {
  // The hook does not run for "mobe help <command>", so the command is loaded here.
  const [, , word, helped] = process.argv;
  const command = word === 'help' && program.commands.find((it) => it.name() === helped);
  if (command) await load(command);

  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : 2;
  else process.exitCode = (await import('./failure.js')).tellFailure(error);
}
