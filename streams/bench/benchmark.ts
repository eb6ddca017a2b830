/** How fast this machine streams a model, what limits it, and how far from the limit we are. */
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

export interface BenchOptions {
  /** Folder on the disk to be written to. Default: the system's temporary one. */
  readonly folder?: string;
  /** Times everything is measured, ways taking turns. */
  readonly rounds?: number;
  /** Of the model that take part: whole shards, and at least one. */
  readonly bytes?: number;
  /** Makes a stage of the conversions slower, to see that it is found. */
  readonly slow?: Slowdown | undefined;
  /** Only these stages. */
  readonly stages?: ReadonlyArray<Way['stage']> | undefined;
  readonly signal?: AbortSignal;
  /** Told before each measurement. */
  readonly onMeasure?: (done: number, total: number, what: string) => void;
}

export interface BenchReport {
  readonly machine: Machine;
  readonly source: SampleOfModel;
  readonly folder: string;
  readonly rounds: number;
  readonly rows: readonly Row[];
  readonly targets: readonly Target[];
  /** What was not measured, and why; how the cache was emptied. */
  readonly notes: readonly string[];
}

export interface Machine {
  readonly cpu: string | undefined;
  readonly cores: number;
  readonly memoryBytes: number;
  readonly platform: string;
  readonly node: string;
  /** Load average when it began. Whatever else ran then is in the figures. */
  readonly load: number;
}

export const machineFacts = (): Machine => ({
  cpu: cpus()[0]?.model,
  cores: cpus().length,
  memoryBytes: totalmem(),
  platform: `${process.platform} ${process.arch}`,
  node: process.version,
  load: loadavg()[0] as number,
});

/** Measures a model's way through this machine. Throws a `MobeError`; nothing is left of what was written. */
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
        if (round > 0 && way.stage === 'pipeline') continue; // minutes, where experts are large
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

/** Undefined where the model has experts that can be compressed. */
function whyNotCompressed(checkpoint: Checkpoint): string | undefined {
  try {
    const { layers } = detectModel(checkpoint);
    return layers.length > 0 ? undefined : 'no layer has routed experts.';
  } catch (error) {
    if (error instanceof MobeError) return error.message;
    throw error;
  }
}
