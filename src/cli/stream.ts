import { Command } from 'commander';
import { streamCheckpoint } from '../../streams/operations/stream.js';
import { formatBytes } from '../format.js';
import { PIPE } from '../location.js';
import { MODEL } from './options.js';
import { ca, peerOptions, tokenFile } from './peers.js';
import { showProgress } from './progress.js';

export function streamCommand(): Command {
  return new Command('stream')
    .description(
      'write a checkpoint as it is to standard output, for "mobe receive <out> -" at the other end of a pipe',
    )
    .argument(...MODEL)
    .argument('[to]', `"${PIPE}", standard output, or ws://host:port/ of "mobe receive"`, PIPE)
    .addOption(tokenFile())
    .addOption(ca())
    .addHelpText(
      'after',
      `
Examples
  mobe stream model | ssh there mobe receive copy -
  mobe stream model > pipe`,
    )
    .action(async (model: string, to: string, flags) => {
      const display = showProgress();
      const peers = await peerOptions(flags);
      const bytes = await streamCheckpoint(model, to, { ...display.hooks, peers }).finally(() => display.stop());
      process.stderr.write(`${formatBytes(bytes)} sent\n`);
    });
}
