#!/usr/bin/env node
import { Command, CommanderError } from 'commander';
import { VERSION } from '../version.js';
import { COMMANDS } from './commands.js';

const program = new Command('mobe')
  .description(
    'Makes Mixture-of-Experts checkpoints smaller by the MoBE factorisation (arXiv 2508.05257), as a stream:\nmemory stays within --max-memory however large the model is.',
  )
  .version(VERSION)
  .addHelpText(
    'after',
    `
Start with
  mobe inspect <model>             what is in a checkpoint
  mobe plan <model>                what a compression would do, and how long it would take
  mobe compress <model> <out>      do it
  mobe generate <model> --prompt … what the compressed model says
  mobe engines                     what can run the arithmetic here, and how fast

Results go to stdout, progress to stderr; --json prints one JSON object instead of a table.
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

async function load(command: Command): Promise<void> {
  const entry = COMMANDS.find(({ name }) => name === command.name());
  (await entry?.load())?.define(command);
}

try {
  // "mobe help <command>" is the one way to a command that passes by the hook.
  const [, , word, helped] = process.argv;
  const command = word === 'help' && program.commands.find((it) => it.name() === helped);
  if (command) await load(command);

  await program.parseAsync();
} catch (error) {
  if (error instanceof CommanderError) process.exitCode = error.exitCode === 0 ? 0 : 2;
  else process.exitCode = (await import('./failure.js')).tellFailure(error);
}
