import { Command } from 'commander';
import { serve } from '../../streams/machines/serve.js';
import { listenAt, listenOptions, logHooks, runService, tlsCert, tlsKey, tokenFile } from './peers.js';

export function serveCommand(): Command {
  return new Command('serve')
    .description(
      'offer a checkpoint to other machines: inspect, plan, compress and verify take its ws:// URL as <model>',
    )
    .argument('<model>', 'folder of a Hugging Face checkpoint')
    .addOption(listenAt())
    .addOption(tokenFile())
    .addOption(tlsCert())
    .addOption(tlsKey())
    .action(async (model: string, flags) => {
      await runService(await serve(model, await listenOptions(flags), logHooks), `${model} is served`);
    });
}
