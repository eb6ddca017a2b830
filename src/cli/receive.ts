import type { Command } from 'commander';
import type { ReceiveHooks } from '../../streams/machines/receive.js';
import { OptionError } from '../errors.js';
import { formatBytes } from '../format.js';
import { listenAt, listenOptions, logHooks, runService, tlsCert, tlsKey, tokenFile } from './peers.js';
import { LINE_INTERVAL_MS } from './tell.js';

export function define(command: Command): void {
  command
    .argument('<out>', 'folder to write: new, empty, or with what an earlier conversation left unfinished')
    .argument('[pipe]', '"-": read from standard input, what "mobe stream" or a conversion to "-" writes')
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
      const { receive, receivePipe } = await import('../../streams/machines/receive.js');
      const { PIPE } = await import('../../streams/machines/remote-output.js');
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
