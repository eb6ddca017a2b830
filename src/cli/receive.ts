import { Command } from 'commander';
import { type ReceiveHooks, receive, receivePipe } from '../../streams/machines/receive.js';
import { OptionError } from '../errors.js';
import { formatBytes } from '../format.js';
import { PIPE } from '../location.js';
import { listenAt, listenOptions, logHooks, runService, tlsCert, tlsKey, tokenFile } from './peers.js';
import { LINE_INTERVAL_MS } from './progress.js';

export function receiveCommand(): Command {
  return new Command('receive')
    .description('keep the result of one conversion that runs on another machine, or comes through a pipe')
    .argument('<out>', 'folder to write: new, empty, or with what an earlier conversation left unfinished')
    .argument('[pipe]', `"${PIPE}": read from standard input, what "mobe stream" or a conversion to "${PIPE}" writes`)
    .addOption(listenAt().makeOptionMandatory(false))
    .addOption(tokenFile())
    .addOption(tlsCert())
    .addOption(tlsKey())
    .addHelpText(
      'after',
      `
Examples
  mobe receive out --listen 0.0.0.0:7002 --token-file token         then, elsewhere: mobe compress model ws://here:7002/
  ssh there mobe stream model | mobe receive copy -

When either side ends early, start it again: the same conversion goes on from what <out> has. Through a pipe it begins anew.`,
    )
    .action(async (out: string, pipe: string | undefined, flags) => {
      const hooks: ReceiveHooks = { ...logHooks, onBytes: bytesLogger() };
      if (pipe === PIPE) return receivePipe(out, process.stdin, hooks);
      if (pipe !== undefined) throw new OptionError(pipe, `expected "${PIPE}" for standard input`);
      if (!flags.listen)
        throw new OptionError('--listen', `give an address to listen on, or "${PIPE}" to read standard input`);
      const receiver = await receive(out, await listenOptions(flags), hooks);
      await runService(receiver, `${out} is ready to be written`, receiver.done);
    });
}

function bytesLogger(): (bytes: number) => void {
  let last = performance.now();
  return (bytes) => {
    if (performance.now() - last < LINE_INTERVAL_MS) return;
    last = performance.now();
    process.stderr.write(`  ${formatBytes(bytes)} written\n`);
  };
}
