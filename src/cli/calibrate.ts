import { type Command, Option } from 'commander';
import type { Calibration, CalibrationProgress } from '../../streams/operations/calibrate.js';
import { formatBytes, formatSeconds } from '../format.js';
import type { CalibrateOptions } from '../inference/run-options.js';
import { CALIBRATION_SCRIPT } from '../models/modelling-files.js';
import { describeRecordPlan } from './describe-record-plan.js';
import { interruptible } from './interrupt.js';
import {
  calibrationTokens,
  engine,
  force,
  json,
  MODEL,
  maxMemory,
  sequenceLength,
  threads,
  wholeNumber,
} from './options.js';
import { ca, cache, type PeerFlags, peerOptions, separatePeers, tokenFile } from './peers.js';
import { progressLine } from './progress-line.js';

interface Flags extends CalibrateOptions, PeerFlags {
  readonly json?: boolean;
  readonly force?: boolean;
}

export function define(command: Command): void {
  command
    .argument(...MODEL)
    .argument('<record>', 'folder for the record')
    .option(
      '--text <file...>',
      'text like that which the model is for: UTF-8, or .jsonl with a "text" or "messages" in each line',
    )
    .option('--from-model', 'let the model write the text itself, for those who have none; slow')
    .addOption(calibrationTokens())
    .addOption(sequenceLength())
    .addOption(new Option('--seed <n>', 'seed of the choice of sequences').argParser(wholeNumber).default(0))
    .addOption(maxMemory())
    .addOption(engine())
    .addOption(threads())
    .addOption(force())
    .addOption(tokenFile())
    .addOption(ca())
    .addOption(cache())
    .addOption(json())
    .option('--script', 'print where the Python script is that writes a record with transformers, for any other model')
    .on('option:script', () => {
      process.stdout.write(`${CALIBRATION_SCRIPT}\n`);
      process.exit();
    })
    .action(async (model: string, record: string, flags: Flags) => {
      const { peers: asked, others } = separatePeers(flags);
      const { json: asJson, force: again, ...options } = others;
      const { calibrate } = await import('../../streams/operations/calibrate.js');
      const line = progressLine();
      const interruption = interruptible(
        () => line.write('stopping (Ctrl-C again stops at once) …'),
        () => line.write('Interrupted in the middle of a layer. Run the same command again to resume.'),
      );
      try {
        const peers = await peerOptions(asked);
        const result = await calibrate(model, record, options, {
          ...{ signal: interruption.signal, peers, force: again ?? false },
          onPlan: (plan) => line.write(describeRecordPlan(plan)),
          onLayer: progressTeller(line.update),
          onWriting: ({ done, tokens }) => line.update(`writing the text: ${done} of ${tokens} tokens`),
        });
        line.clear();
        process.stdout.write(`${asJson ? JSON.stringify(result, null, 2) : describe(record, result)}\n`);
      } finally {
        line.clear();
        interruption.stop();
      }
    });
}

function progressTeller(update: (text: string) => void): (progress: CalibrationProgress) => void {
  let first: { readonly share: number; readonly time: number } | undefined;
  return ({ layer, layers, done, sequences }) => {
    const share = (layer + done / sequences) / layers;
    const time = performance.now();
    first ??= { share, time };
    const seconds = ((time - first.time) / 1000) * ((1 - share) / (share - first.share));
    const left = Number.isFinite(seconds) && share < 1 ? `, about ${formatSeconds(seconds)} left` : '';
    update(`layer ${layer + 1} of ${layers}: ${done} of ${sequences} sequences${left}`);
  };
}

function describe(record: string, { already, plan, seconds, bytesRead, peakRssBytes }: Calibration): string {
  const size = `${plan.tokens} tokens of ${plan.layers} layers, ${formatBytes(plan.recordBytes)}`;
  if (already) return `${record} already has this record, so nothing was done (--force makes it again): ${size}.`;
  return `${record} is written: ${size}; ${formatSeconds(seconds)}, ${formatBytes(bytesRead)} of weights read, peak memory ${formatBytes(peakRssBytes)}.`;
}
