/** Submits a compression to a farm, and assembles the result as factors arrive. */
import { mkdir, rm, rmdir } from 'node:fs/promises';
import { hostname } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { dtypeName } from '../../src/checkpoint/factor-dtype.js';
import { type Checkpoint, fingerprint } from '../../src/checkpoint/open-checkpoint.js';
import type { ConversionPlan } from '../../src/conversion/conversion-plan.js';
import { factorFileName, openFactorFile } from '../../src/conversion/factor-files.js';
import { fitUnits } from '../../src/conversion/fit-slices.js';
import { compareGroups } from '../../src/conversion/group-plan.js';
import {
  type CompressOptions,
  factorSettings,
  hasPrecisions,
  holdsWeights,
  repairsDown,
} from '../../src/conversion/settings.js';
import { OptionError, OutputNotWritableError, SecretInJobError } from '../../src/errors.js';
import { isPath, normaliseLocation, publicLocation } from '../../src/location.js';
import { LocalFiles } from '../../src/sources/files.js';
import { joinFiles } from '../../src/sources/join-files.js';
import { VERSION } from '../../src/version.js';
import { withThread } from '../compute/compute-thread.js';
import { openSource } from '../machines/remote-files.js';
import { withAllocation } from '../operations/allocate.js';
import { checkAllowed, compressWith } from '../operations/compress.js';
import type { BranchContext } from '../operations/convert.js';
import { fitCircumstances } from '../operations/fit-experts.js';
import { planFit } from '../operations/fit-groups.js';
import { planRun } from '../operations/plan-run.js';
import type { OutputRecord } from '../records.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { matchFactors } from '../stages/rebuild.js';
import { copyAll, type GroupAndFile, rebuildAll } from '../stages/write-factored.js';
import { arrivals, type FarmUnit, unitOf, withdraw } from './arrivals.js';
import { type FarmRun, runId } from './farm-run.js';
import { type FarmQueue, openQueue } from './redis.js';

/** Options of `submitToFarm`, beside those of a compression. */
export interface FarmOptions {
  /** The queue's address, with its password. */
  readonly queue: string;
  /** A folder that all machines see under this name; default: `<out>.factors`, which is removed when the result is complete. */
  readonly factors?: string | undefined;
  /** How often a group may fail; default: 3. */
  readonly tries?: number | undefined;
  /** Gets sentences about the queue and the workers. */
  readonly onMessage?: ((sentence: string) => void) | undefined;
}

const DEFAULT_TRIES = 3;
/** How long the end of a submit waits for Redis. */
const WITHDRAW_TIMEOUT_MS = 10_000;

/**
 * Compresses `model` into `out` with the workers of a farm. Run again after an interruption, it goes on: finished groups are kept, and
 * workers go on without it. The result has the bytes of `compress` on one machine. Throws `FarmFailedError` if groups failed on every
 * try, and otherwise as `compress` and `openQueue` do.
 */
export async function submitToFarm(
  model: string,
  out: string,
  options: CompressOptions,
  farm: FarmOptions,
  run: RunOptions = {},
): Promise<RunResult> {
  const started = performance.now();
  checkSubmitted(model, out, farm, options);
  const { onMessage = () => {} } = farm;
  const queue = await openQueue(farm.queue, { onQueue: onMessage });
  try {
    return await withAllocation(
      model,
      out,
      options,
      run,
      (allocated) => submitPlanned(model, out, allocated, { ...farm, onMessage }, queue, run, started),
      (uniform) => checkAllowed(uniform, run),
    );
  } finally {
    await queue.close();
  }
}

function checkSubmitted(
  model: string,
  out: string,
  { factors }: FarmOptions,
  { keepQuantized }: CompressOptions,
): void {
  const plain = isPath(model) ? model : normaliseLocation(model);
  if (!isPath(model) && publicLocation(model) !== plain) throw new SecretInJobError(publicLocation(model));
  if (keepQuantized)
    throw new OptionError(
      '--keep-quantized',
      'a farm does not know it. Use "mobe fit --shard" and "mobe export --keep-quantized"',
    );
  if (factors === undefined && !isPath(out))
    throw new OptionError('--factors', 'name a folder that all machines see, since the result goes to an address');
  if (factors !== undefined && !isPath(factors))
    throw new OptionError('--factors', 'it must be a folder that all machines see');
}

async function submitPlanned(
  model: string,
  out: string,
  options: CompressOptions,
  farm: Omit<FarmOptions, 'onMessage'> & { readonly onMessage: (sentence: string) => void },
  queue: FarmQueue,
  run: RunOptions,
  started: number,
): Promise<RunResult> {
  const source = await openSource(model, run);
  const { planned, record } = await planRun(source, options, run);
  await record?.close();
  checkAllowed(planned, run);
  const { run: described, units } = await describeRun(model, out, source, options, planned, farm, run);
  const left: FarmUnit[] = [];
  const result = await compressWith(
    planned,
    out,
    {
      async onStart() {
        run.onProgress?.({ kind: 'plan', plan: { ...planned, estimatedSeconds: Number.NaN } });
      },
      async *experts({ missing, signal }) {
        const wanted = new Set(missing.map(factorFileName));
        left.push(...units.filter(({ groups }) => groups.some((group) => wanted.has(factorFileName(group)))));
        await mkdir(described.factors, { recursive: true }).catch((error) => {
          throw new OutputNotWritableError(described.factors, (error as Error).message);
        });
        const coming = arrivals(left, {
          queue,
          run: described,
          tries: farm.tries ?? DEFAULT_TRIES,
          signal,
          onMessage: farm.onMessage,
        });
        yield* assemble(coming, planned, described, { missing, signal });
      },
    },
    run,
    started,
  );
  const removed = withdraw(queue, described, units).then(
    () => true,
    () => false,
  );
  const timeout = delay(WITHDRAW_TIMEOUT_MS, false, { ref: false });
  if (!(await Promise.race([removed, timeout])))
    farm.onMessage(
      'The result is complete, but its jobs could not be removed from the queue: submit again to do that.',
    );
  if (farm.factors === undefined) await removeFolder(described.factors);
  return result;
}

/** Describes the run for the workers, and divides its groups among jobs. */
async function describeRun(
  model: string,
  out: string,
  source: Checkpoint,
  options: CompressOptions,
  { settings, memory, groups, engine }: Awaited<ReturnType<typeof planRun>>['planned'],
  farm: Pick<FarmOptions, 'factors'>,
  run: RunOptions,
): Promise<{ run: FarmRun; units: FarmUnit[] }> {
  const { threadsPerWorker: threads, batchExperts } = memory;
  const {
    format: _,
    shardSize: __,
    keepQuantized: ___,
    maxError: ____,
    threads: _____,
    maxMemory: ______,
    ...fitting
  } = options;
  const [first] = groups;
  // Rebuilt weights are rounded once: from factors in their own dtype.
  const dtype = holdsWeights(settings) && first ? { dtype: dtypeName(first.dtype) as CompressOptions['dtype'] } : {};
  const { calibration } = options;
  const fitOptions: CompressOptions = {
    ...fitting,
    ...dtype,
    engine: engine.name,
    // An engine of another worker may have another precision by default.
    ...(hasPrecisions(settings) && { precision: settings.precision }),
    ...(calibration !== undefined && { calibration: isPath(calibration) ? resolve(calibration) : calibration }),
  };
  const fit = await planFit(source, { ...fitOptions, threads, batchExperts }, run);
  await fit.record?.close();
  const commit = await source.files.commit?.(source.folder);
  const sourceFingerprint = await fingerprint(source);
  const place = resolve(farm.factors ?? `${out}.factors`);
  const id = runId({
    VERSION,
    sourceFingerprint,
    commit,
    settings: factorSettings(fit.planned.settings),
    circumstances: fitCircumstances(fit.planned),
    place,
  });
  const units = fitUnits(fit.plan.groups, repairsDown(settings)).map(unitOf);
  return {
    units,
    run: {
      ...{ id, version: VERSION, model: pinned(model, commit), factors: join(place, id), out: publicLocation(out) },
      ...{ sourceFingerprint, options: fitOptions, engine: engine.name, threads, batchExperts },
      ...{ units: units.length, finished: 0, submitted: new Date().toISOString(), host: hostname() },
    },
  };
}

/** The location of the model for other machines. That of the hub names a commit, so that all read the same. */
function pinned(model: string, commit: string | undefined): string {
  if (isPath(model)) return resolve(model);
  return commit === undefined ? model : model.replace(/^(hf:\/\/[^/@]+\/[^/@]+)(?:@[^/]+)?/i, `$1@${commit}`);
}

/** Yields what the factors of arriving units make in the result. */
async function* assemble(
  coming: AsyncIterable<FarmUnit>,
  planned: ConversionPlan & Awaited<ReturnType<typeof planRun>>['planned'],
  { factors, sourceFingerprint }: FarmRun,
  { missing, signal }: Pick<BranchContext, 'missing' | 'signal'>,
): AsyncGenerator<OutputRecord> {
  const { settings, memory, model } = planned;
  const files = new LocalFiles();
  const both = joinFiles({ folder: planned.source.folder, files: planned.source.files }, { folder: factors, files });
  const open = async ({ groups }: FarmUnit): Promise<GroupAndFile[]> => {
    const all: GroupAndFile[] = [];
    for (const group of groups) {
      const own = missing.find((it) => compareGroups(it, group) === 0);
      if (!own) continue;
      const file = await openFactorFile(join(factors, factorFileName(group)));
      all.push([{ ...matchFactors(file, model, sourceFingerprint), group: own }, file]);
    }
    return all;
  };
  const write = async function* (
    each: (found: GroupAndFile[]) => AsyncIterable<OutputRecord>,
  ): AsyncGenerator<OutputRecord> {
    for await (const unit of coming) {
      yield* each(await open(unit));
      await files.close();
    }
  };
  try {
    if (!holdsWeights(settings)) yield* write((found) => copyAll(planned, found, both));
    else {
      const { engine, maxError } = settings;
      const threads = memory.threadsPerWorker;
      yield* withThread({ engine, threads }, signal, (thread) =>
        write((found) => rebuildAll(planned, found, both, thread, maxError)),
      );
    }
  } finally {
    await files.close();
  }
}

async function removeFolder(folder: string): Promise<void> {
  await rm(folder, { recursive: true, force: true });
  await rmdir(join(folder, '..')).catch(() => {}); // others may have factors in it
}
