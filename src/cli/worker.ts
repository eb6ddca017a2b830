import type { Command } from 'commander';
import { engine, maxMemory, precision, threads } from './options.js';
import { listenAt, listenOptions, runService, tlsCert, tlsKey, tokenFile } from './peers.js';
import { jsonLines, SERVICE_EVENTS, serviceHooks, teller } from './tell.js';

export function define(command: Command): void {
  command
    .addOption(listenAt())
    .addOption(engine())
    .addOption(precision())
    .addOption(threads())
    .addOption(maxMemory())
    .addOption(tokenFile())
    .addOption(tlsCert())
    .addOption(tlsKey())
    .addOption(jsonLines())
    .addHelpText('after', SERVICE_EVENTS)
    .action(async ({ engine, precision, threads, maxMemory, json, ...flags }) => {
      const { work } = await import('../../streams/compute/worker.js');
      const options = {
        engine,
        ...(precision && { precision }),
        ...(threads && { threads }),
        ...(maxMemory && { maxMemory }),
      };
      const tell = teller(json);
      const listener = await work(options, await listenOptions(flags), serviceHooks(tell));
      await runService(listener, 'a worker is ready', tell);
    });
}
