import { Command } from 'commander';
import { work } from '../../streams/compute/worker.js';
import { engine, maxMemory, threads } from './options.js';
import { listenAt, listenOptions, logHooks, runService, tlsCert, tlsKey, tokenFile } from './peers.js';

export function workerCommand(): Command {
  return new Command('worker')
    .description('fit groups for conversions that run on other machines with --workers')
    .addOption(listenAt())
    .addOption(engine())
    .addOption(threads())
    .addOption(maxMemory())
    .addOption(tokenFile())
    .addOption(tlsCert())
    .addOption(tlsKey())
    .action(async ({ engine, threads, maxMemory, ...flags }) => {
      const options = { engine, ...(threads && { threads }), ...(maxMemory && { maxMemory }) };
      await runService(await work(options, await listenOptions(flags), logHooks), 'a worker is ready');
    });
}
