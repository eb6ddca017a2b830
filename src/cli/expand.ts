import { Command } from 'commander';
import { expand } from '../../streams/operations/expand.js';
import { compressOptions, engine, force, json, shardSize, threads } from './options.js';
import { ca, tokenFile } from './peers.js';
import { runAndPrint } from './run.js';

export function expandCommand(): Command {
  return new Command('expand')
    .description('turn a native MoBE checkpoint back into standard weights')
    .argument('<native>', 'folder of a native MoBE checkpoint')
    .argument('<out>', 'folder to write, new or empty; or ws://host:port/ of "mobe receive", or "-" for a pipe')
    .addOption(shardSize())
    .addOption(engine())
    .addOption(threads())
    .addOption(force())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(json())
    .action((native: string, out: string, flags) =>
      runAndPrint(out, flags, (run) => expand(native, out, compressOptions(flags), run)),
    );
}
