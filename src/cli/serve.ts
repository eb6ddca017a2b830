import type { Command } from 'commander';
import { MODEL } from './options.js';
import { listenAt, listenOptions, runService, tlsCert, tlsKey, tokenFile } from './peers.js';
import { jsonLines, SERVICE_EVENTS, serviceHooks, teller } from './tell.js';

export function define(command: Command): void {
  command
    .argument('<model>', MODEL[1])
    .addOption(listenAt())
    .addOption(tokenFile())
    .addOption(tlsCert())
    .addOption(tlsKey())
    .addOption(jsonLines())
    .addHelpText('after', SERVICE_EVENTS)
    .action(async (model: string, { json, ...flags }) => {
      const { sourceName } = await import('../sources/open-source.js');
      const { serve } = await import('../../streams/machines/serve.js');
      const tell = teller(json);
      const listener = await serve(model, await listenOptions(flags), serviceHooks(tell));
      await runService(listener, `${sourceName(model)} is served`, tell);
    });
}
