/** Measures how fast this machine streams a model, what limits it, and how close this program comes to the limit. */
import { mkdir, mkdtemp, rm } from 'node:fs/promises';
import { cpus, loadavg, tmpdir, totalmem } from 'node:os';
import { join, resolve } from 'node:path';
import { type Checkpoint, openCheckpoint } from '../../src/checkpoint/open-checkpoint.js';
import { InterruptedError, MobeError } from '../../src/errors.js';
import { detectModel } from '../../src/models/detect.js';
import { checkDisk } from '../../src/output/output-folder.js';
import type { Slowdown } from '../flow/stage-clock.js';
import { findCacheDropper, settle, warm } from './cache.js';
import { missing } from './commands.js';
import { type Measured, makeRows, type Row } from './rows.js';
import { runTask } from './run-task.js';
import type { Sample } from './sample.js';
import { sampleModel } from './sample-model.js';
import { checkTargets, type Target } from './targets.js';
import { type Command, DEFAULT_BYTES, DEFAULT_ROUNDS, type SampleOfModel } from './task.js';
import { listWays, type Way } from './ways.js';

/** Options of `benchmark`. */
export interface BenchOptions {
  /** Folder on the disk that is measured. Default: the system's temporary folder. */
  readonly folder?: string;
  /** Number of rounds. Each round measures every way once. Default: `DEFAULT_ROUNDS`. */
  readonly rounds?: number;
  /** Most bytes of the model to read, in whole shards and at least one. Default: `DEFAULT_BYTES`. */
  readonly bytes?: number;
  /** Makes one stage of the conversions slower, to test that the report finds it. */
  readonly slow?: Slowdown | undefined;
  /** Stages to measure. Default: all. */
  readonly stages?: ReadonlyArray<Way['stage']> | undefined;
  readonly signal?: AbortSignal;
  /** Called before each measurement. */
  readonly onMeasure?: (done: number, total: number, what: string) => void;
}

/** All results of one run. */
export interface BenchReport {
  readonly machine: Machine;
  readonly source: SampleOfModel;
  readonly folder: string;
  readonly rounds: number;
  readonly rows: readonly Row[];
  readonly targets: readonly Target[];
  /** Things that were not measured, with the reason, and how the cache was emptied. */
  readonly notes: readonly string[];
}

/** The machine that was measured. */
export interface Machine {
  readonly cpu: string | undefined;
  readonly cores: number;
  readonly memoryBytes: number;
  readonly platform: string;
  readonly node: string;
  /** Load average at the start. Other programs that ran then affect the figures. */
  readonly load: number;
}

/** Facts about this machine. */
export const machineFacts = (): Machine => ({
  cpu: cpus()[0]?.model,
  cores: cpus().length,
  memoryBytes: totalmem(),
  platform: `${process.platform} ${process.arch}`,
  node: process.version,
  load: loadavg()[0] as number,
});

/** Measures every stage on a model. Removes all files that it wrote. Throws a `MobeError`. */
export async function benchmark(model: string, options: BenchOptions = {}): Promise<BenchReport> {
  const { rounds = DEFAULT_ROUNDS, bytes: limit = DEFAULT_BYTES, slow, stages, signal, onMeasure } = options;
  const machine = machineFacts();
  const parent = resolve(options.folder ?? tmpdir());
  const checkpoint = await openCheckpoint(model);
  const source = sampleModel(checkpoint, limit);
  await checkDisk(parent, source.bytes);
  const made = await mkdir(parent, { recursive: true });
  const folder = await mkdtemp(join(parent, 'mobe-bench-'));
  try {
    const notes: string[] = [];
    const dropper = await findCacheDropper(source);
    notes.push(dropper ? `Cold: ${dropper.how}.` : 'Warm only: the cache cannot be emptied here, or not be checked.');
    const commands: Command[] = [];
    for (const command of ['cp', 'sha256sum', 'dd', 'python'] as const) {
      const reason = await missing(command);
      if (reason === undefined) commands.push(command);
      else notes.push(`Not compared with ${command}: ${reason}.`);
    }
    const obstacle = whyNotCompressed(checkpoint);
    if (obstacle) notes.push(`The whole pipeline was not measured: ${obstacle}`);
    const ways = listWays({
      source,
      folder,
      bytes: Math.min(limit, source.bytes),
      cold: dropper !== undefined,
      commands,
      compress: obstacle === undefined,
      slow,
    }).filter(({ stage }) => stages?.includes(stage) ?? true);

    const samples = new Map<Way, Sample[]>(ways.map((way) => [way, []]));
    const total = ways.reduce((sum, { stage }) => sum + (stage === 'pipeline' ? 1 : rounds), 0);
    let done = 0;
    for (let round = 0; round < rounds; round++) {
      for (const way of ways) {
        if (signal?.aborted) throw new InterruptedError();
        if (round > 0 && way.stage === 'pipeline') continue; // large experts take minutes
        onMeasure?.(done++, total, `${way.stage}: ${way.way}${way.cache === 'cold' ? ', cold' : ''}`);
        await settle(folder);
        if (way.cache === 'cold') await dropper?.drop(source);
        if (way.cache === 'warm') await warm(source);
        samples.get(way)?.push(await runTask(way.task, signal));
      }
    }
    const measured = [...samples].map(([{ task: _, ...way }, taken]): Measured => ({ ...way, samples: taken }));
    const rows = makeRows(measured);
    return { machine, source, folder: parent, rounds, rows, targets: checkTargets(rows), notes };
  } finally {
    await rm(made ?? folder, { recursive: true, force: true });
  }
}

/** Why the model cannot be compressed; undefined if it can. */
function whyNotCompressed(checkpoint: Checkpoint): string | undefined {
  try {
    const { layers } = detectModel(checkpoint);
    return layers.length > 0 ? undefined : 'no layer has routed experts.';
  } catch (error) {
    if (error instanceof MobeError) return error.message;
    throw error;
  }
}
