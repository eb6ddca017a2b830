import type { Command } from 'commander';
import type { ReceiveHooks } from '../../streams/machines/receive.js';
import { OptionError } from '../errors.js';
import { PIPE } from '../location.js';
import { listenAt, listenOptions, runService, tlsCert, tlsKey, tokenFile } from './peers.js';
import { byteTeller, jsonLines, SERVICE_EVENTS, serviceHooks, teller } from './tell.js';

export function define(command: Command): void {
  command
    .argument('<out>', 'folder to write: new, empty, or with what an earlier conversation left unfinished')
    .argument('[pipe]', '"-": read from standard input, what "mobe stream" or a conversion to "-" writes')
    .addOption(listenAt().makeOptionMandatory(false))
    .addOption(tokenFile())
    .addOption(tlsCert())
    .addOption(tlsKey())
    .addOption(jsonLines())
    .addHelpText(
      'after',
      `
Examples
  mobe receive out --listen 0.0.0.0:7002 --token-file token         then, elsewhere: mobe compress model ws://here:7002/
  ssh there mobe stream model | mobe receive copy -

When either side ends early, start it again: the same conversion goes on from what <out> has. Through a pipe it begins anew.
${SERVICE_EVENTS}
  {"event":"progress","bytes":…}               bytes written so far, every ten seconds
  {"event":"done","folder":…}                  the result is whole`,
    )
    .action(async (out: string, pipe: string | undefined, { json, ...flags }) => {
      const { receive, receivePipe } = await import('../../streams/machines/receive.js');
      const tell = teller(json);
      const hooks: ReceiveHooks = { ...serviceHooks(tell), onBytes: byteTeller(tell, 'written') };
      const done = (): void => tell({ event: 'done', folder: out });
      if (pipe === PIPE) return receivePipe(out, process.stdin, hooks).then(done);
      if (pipe !== undefined) throw new OptionError(pipe, `expected "${PIPE}" for standard input`);
      if (!flags.listen)
        throw new OptionError('--listen', `give an address to listen on, or "${PIPE}" to read standard input`);
      const receiver = await receive(out, await listenOptions(flags), hooks);
      await runService(receiver, `${out} is ready to be written`, tell, receiver.done.then(done));
    });
}
