import type { Command } from 'commander';
import { formatBytes } from '../format.js';
import { MODEL } from './options.js';
import { ca, peerOptions, tokenFile } from './peers.js';

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .argument('[to]', '"-", standard output, or ws://host:port/ of "mobe receive"', '-')
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
      const { streamCheckpoint } = await import('../../streams/operations/stream.js');
      const { showProgress } = await import('./progress.js');
      const display = showProgress();
      const peers = await peerOptions(flags);
      const bytes = await streamCheckpoint(model, to, { ...display.hooks, peers }).finally(() => display.stop());
      process.stderr.write(`${formatBytes(bytes)} sent\n`);
    });
}
