import type { Command } from 'commander';
import { formatBytes } from '../format.js';
import { PIPE } from '../location.js';
import { interruptible } from './interrupt.js';
import { MODEL } from './options.js';
import { ca, cache, peerOptions, tokenFile } from './peers.js';
import type { ProgressDisplay } from './progress.js';
import { byteTeller, jsonLines, type Tell, teller } from './tell.js';

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .argument('[to]', '"-" for standard output, or ws://host:port/ of "mobe receive"', '-')
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(jsonLines())
    .addHelpText(
      'after',
      `
Examples
  mobe stream model | ssh there mobe receive copy -
  mobe stream model > pipe

With --json, one object for each line goes to stdout, or to stderr if stdout is the pipe:
  {"event":"progress","bytes":…}               bytes sent so far, every ten seconds
  {"event":"done","to":…,"bytes":…}            everything was sent`,
    )
    .action(async (model: string, to: string, flags) => {
      const { streamCheckpoint } = await import('../../streams/operations/stream.js');
      const { showProgress } = await import('./progress.js');
      const tell = teller(flags.json, to === PIPE ? process.stderr : process.stdout);
      const display = flags.json ? tellProgress(tell) : showProgress();
      const peers = await peerOptions(flags);
      const bytes = await streamCheckpoint(model, to, { ...display.hooks, peers }).finally(() => display.stop());
      tell({ event: 'done', to, bytes }, `${formatBytes(bytes)} sent`);
    });
}

function tellProgress(tell: Tell): ProgressDisplay {
  const sent = byteTeller(tell, 'sent');
  const { signal, stop } = interruptible(() => tell({ event: 'stopping' }));
  return { hooks: { signal, onProgress: (it) => it.kind === 'bytes' && sent(it.bytes) }, stop };
}
