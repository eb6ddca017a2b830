import { Command, Option } from 'commander';
import { work } from '../../streams/remote/worker.js';
import { bytes, engine, threads } from './options.js';
import { listenAt, listenOptions, logHooks, runService, tlsCert, tlsKey, tokenFile } from './peers.js';

export function workerCommand(): Command {
  return new Command('worker')
    .description('fit groups for conversions that run on other machines with --workers')
    .addOption(listenAt())
    .addOption(engine())
    .addOption(threads())
    .addOption(
      new Option(
        '--max-memory <size>',
        'peak memory to stay within, e.g. 8GiB (default: 80 % of this machine)',
      ).argParser(bytes),
    )
    .addOption(tokenFile())
    .addOption(tlsCert())
    .addOption(tlsKey())
    .action(async ({ engine, threads, maxMemory, ...flags }) => {
      const options = { engine, ...(threads && { threads }), ...(maxMemory && { maxMemory }) };
      await runService(await work(options, await listenOptions(flags), logHooks), 'a worker is ready');
    });
}
