import { availableParallelism } from 'node:os';
import type { Command } from 'commander';
import { fastest } from '../engine/choose-engine.js';
import { ENGINE_NAMES, FOR_CHECKS } from '../engine/create-engine.js';
import { type BrokenEngine, probeEngine, type WorkingEngine, works } from '../engine/probe.js';
import { allowTensorCores } from '../engine/tensor-cores.js';
import { type LinkedTensorflow, linkTensorflow } from '../engine/tensorflow/link-tensorflow.js';
import { formatBytes } from '../format.js';
import { json, threads } from './options.js';
import { formatTable, left, right } from './table.js';

interface Flags {
  threads?: number;
  json?: boolean;
  linkTensorflow?: string;
}

export function define(command: Command): void {
  command
    .option(
      '--link-tensorflow <folder>',
      'build the native part of the TensorFlow engine against the TensorFlow of a Python wheel: <site-packages>/tensorflow',
    )
    .addOption(threads())
    .addOption(json())
    .addHelpText(
      'after',
      `
The speed is that of plain matrix products in the first precision, measured here. In tf32, tensor cores round the factors of a
product to 10 bits; fits use it unless --precision f32 is given. A graphics device that is emulated in software counts as a CPU.
"--engine auto" measures at the shapes of the model. It takes the fastest GPU if that is faster than onnx-cpu.`,
    )
    .action(async (flags: Flags) => {
      const print = (result: object, text: string): void => {
        process.stdout.write(`${flags.json ? JSON.stringify(result, null, 2) : text}\n`);
      };
      if (flags.linkTensorflow !== undefined) {
        const linked = await linkTensorflow(flags.linkTensorflow, (line) => process.stderr.write(`${line}\n`));
        return print(linked, describeLinked(linked));
      }
      allowTensorCores();
      const engines: Array<WorkingEngine | BrokenEngine> = [];
      for (const name of ENGINE_NAMES)
        engines.push(await probeEngine(name, { threads: flags.threads ?? availableParallelism(), rate: 'any' }));
      const auto = fastest(engines.filter(works)).name;
      const listed = engines.map((engine) => ({
        works: works(engine),
        forChecks: engine.name in FOR_CHECKS,
        ...engine,
      }));
      print({ engines: listed, auto }, describe(engines, auto));
    });
}

function describe(engines: ReadonlyArray<WorkingEngine | BrokenEngine>, auto: string): string {
  const table = formatTable(
    [left('engine'), left('runs on'), left('device'), left('precision'), right('products'), right('largest tensor')],
    engines.map((engine) =>
      works(engine)
        ? [
            engine.name,
            engine.kind.toUpperCase(),
            engine.device,
            engine.tf32 ? 'tf32, f32' : 'f32',
            `${formatRate(engine.gemmRate ?? 0)} GFLOP/s`,
            engine.maxTensorBytes === undefined ? '-' : formatBytes(engine.maxTensorBytes),
          ]
        : [engine.name, 'does not work here', '', '', '', ''],
    ),
  );
  const reasons = engines.flatMap((engine) => (works(engine) ? [] : [`${engine.name}: ${engine.reason}.`]));
  const checks = engines.flatMap(({ name }) =>
    FOR_CHECKS[name] ? [`${name} is for checks alone: ${FOR_CHECKS[name]}.`] : [],
  );
  return [table, ...reasons, ...checks, `--engine auto would take ${auto}.`].join('\n\n');
}

const formatRate = (rate: number): string => (rate < 1e10 ? (rate / 1e9).toFixed(2) : (rate / 1e9).toFixed(0));

function describeLinked({ addon, kind, device }: LinkedTensorflow): string {
  const verdict =
    kind === 'gpu'
      ? `It runs on the GPU: ${device}.`
      : `It runs on the CPU, not on a GPU: ${device}.\nFor a GPU it needs NVIDIA's driver and a wheel with CUDA: pip install 'tensorflow[and-cuda]'.`;
  return `${addon} is linked to TensorFlow.\n${verdict}\nUse it with --engine tensorflow.`;
}
