import { Command } from 'commander';
import { linkAndPrint } from './link-tensorflow.js';
import { json } from './options.js';

export function enginesCommand(): Command {
  return new Command('engines')
    .description('what can run the arithmetic')
    .requiredOption(
      '--link-tensorflow <folder>',
      "build the TensorFlow engine's native part against a Python wheel's TensorFlow: <site-packages>/tensorflow",
    )
    .addOption(json())
    .action((flags: { linkTensorflow: string; json?: boolean }) => linkAndPrint(flags.linkTensorflow, flags));
}
