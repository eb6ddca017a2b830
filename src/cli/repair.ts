import { type Command, Option } from 'commander';
import { compressOptions, engine, force, json, MODEL, report, shardSize, threads } from './options.js';
import { ca, cache, tokenFile } from './peers.js';

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .argument('<result>', 'folder of a native checkpoint or of factor files, made from this model')
    .argument('<out>', 'folder to write, new or empty: a result of the same kind')
    .addOption(
      new Option(
        '--calibration <record>',
        'folder of a calibration record of the model ("mobe calibrate")',
      ).makeOptionMandatory(),
    )
    .addOption(
      new Option('--repair <what>', "the experts' own factors, or these and down_proj")
        .choices(['factors', 'factors+down'])
        .default('factors+down'),
    )
    .addOption(shardSize())
    .addOption(engine())
    .addOption(threads())
    .addOption(report())
    .addOption(force())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .addHelpText(
      'after',
      `
The bases stay as they are. With the inputs that the experts had on the
calibration text, each expert's own factor is solved anew for the smallest error
of its outputs; then down_proj is adjusted to the compressed gate and up. An
interrupted run goes on with the next layer when it is started again.`,
    )
    .action(async (model: string, result: string, out: string, { calibration, repair: what, ...flags }) => {
      const { repair } = await import('../../streams/operations/repair.js');
      const { runAndPrint } = await import('./run.js');
      await runAndPrint(out, flags, (run) =>
        repair(model, result, out, { ...compressOptions(flags), calibration, repair: what }, run),
      );
    });
}
