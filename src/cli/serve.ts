import type { Command } from 'commander';
import { listenAt, listenOptions, logHooks, runService, tlsCert, tlsKey, tokenFile } from './peers.js';

export function define(command: Command): void {
  command
    .argument('<model>', 'folder of a Hugging Face checkpoint')
    .addOption(listenAt())
    .addOption(tokenFile())
    .addOption(tlsCert())
    .addOption(tlsKey())
    .action(async (model: string, flags) => {
      const { serve } = await import('../../streams/machines/serve.js');
      await runService(await serve(model, await listenOptions(flags), logHooks), `${model} is served`);
    });
}
