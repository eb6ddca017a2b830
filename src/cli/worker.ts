import type { Command } from 'commander';
import { engine, maxMemory, threads } from './options.js';
import { listenAt, listenOptions, logHooks, runService, tlsCert, tlsKey, tokenFile } from './peers.js';

export function define(command: Command): void {
  command
    .addOption(listenAt())
    .addOption(engine())
    .addOption(threads())
    .addOption(maxMemory())
    .addOption(tokenFile())
    .addOption(tlsCert())
    .addOption(tlsKey())
    .action(async ({ engine, threads, maxMemory, ...flags }) => {
      const { work } = await import('../../streams/compute/worker.js');
      const options = { engine, ...(threads && { threads }), ...(maxMemory && { maxMemory }) };
      await runService(await work(options, await listenOptions(flags), logHooks), 'a worker is ready');
    });
}
