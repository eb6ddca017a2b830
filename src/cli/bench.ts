import { writeFile } from 'node:fs/promises';
import { type Command, Option } from 'commander';
import { reportPage } from '../../streams/bench/bench-page.js';
import type { BenchOptions } from '../../streams/bench/benchmark.js';
import { DEFAULT_BYTES, DEFAULT_ROUNDS } from '../../streams/bench/task.js';
import { formatBytes } from '../format.js';
import { describeReport } from './bench-table.js';
import { bytes, json, positiveInteger } from './options.js';

interface BenchFlags extends Pick<BenchOptions, 'rounds' | 'bytes'> {
  readonly json?: boolean;
  readonly html?: string;
}

export function define(command: Command): void {
  command
    .argument('<model>', 'folder of a checkpoint (config.json and *.safetensors) on the disk to be read from')
    .argument('[folder]', 'on the disk to be written to (default: the temporary folder); nothing stays there')
    .addOption(
      new Option('--rounds <n>', 'times everything is measured').argParser(positiveInteger).default(DEFAULT_ROUNDS),
    )
    .addOption(
      new Option('--bytes <size>', 'of the checkpoint that take part: its first shards')
        .argParser(bytes)
        .default(DEFAULT_BYTES, formatBytes(DEFAULT_BYTES)),
    )
    .addOption(new Option('--html <file>', 'write the report as a page too'))
    .addOption(json())
    .action(async (model: string, folder: string | undefined, { json, html, ...flags }: BenchFlags) => {
      const { benchmark } = await import('../../streams/bench/benchmark.js');
      const stop = new AbortController();
      const interrupt = (): void => stop.abort();
      process.once('SIGINT', interrupt).once('SIGTERM', interrupt);
      try {
        const report = await benchmark(model, {
          ...flags,
          ...(folder !== undefined && { folder }),
          signal: stop.signal,
          onMeasure: (done, total, what) => void process.stderr.write(`${done + 1} of ${total}: ${what}\n`),
        });
        if (html) await writeFile(html, reportPage(report));
        process.stdout.write(`${json ? JSON.stringify(report, null, 2) : describeReport(report)}\n`);
      } finally {
        process.off('SIGINT', interrupt).off('SIGTERM', interrupt);
      }
    });
}
