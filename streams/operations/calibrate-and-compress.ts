/** Compresses with a calibration record that is made while it is used. */
import { createHash } from 'node:crypto';
import { readdir, rm, rmdir } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { basename, dirname, join, resolve } from 'node:path';
import { type CompressOptions, resolveSettings, type Settings } from '../../src/conversion/settings.js';
import { allowTensorCores } from '../../src/engine/tensor-cores.js';
import { inWhole, OptionError } from '../../src/errors.js';
import { nodeFileSystem } from '../../src/file-system.js';
import type { CalibrateOptions } from '../../src/inference/run-options.js';
import { isPath } from '../../src/location.js';
import { checkOutside } from '../../src/output/folder-checks.js';
import { LOCK_FILE, lockFolder } from '../../src/output/folder-lock.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { compress } from './compress.js';
import type { OutputPlace } from './open-output.js';
import { recordWhileUsed } from './record-while-used.js';

/** The text of a record, and how much of it is used. Engine, threads, memory and seed are those of the run. */
export type CalibrationText = Required<Pick<CalibrateOptions, 'text'>> &
  Pick<CalibrateOptions, 'tokens' | 'sequenceLength'>;

/**
 * Compresses as `compress` with a record of `text`, of which at most two layers are on disk. They lie beside the result, with short
 * fits and sensitivities, and are removed when it is whole. An interrupted call resumes. Throws as `compress` and `calibrate` do.
 */
export async function calibrateAndCompress(
  model: Source,
  out: OutputPlace,
  { text, tokens, sequenceLength }: CalibrationText,
  options: Omit<CompressOptions, 'calibration'> = {},
  run: RunOptions = {},
): Promise<RunResult> {
  const { fileSystem: fs = nodeFileSystem, force = false, workers = [], peers, onProgress } = run;
  const calibration = workspaceOf(model, out);
  const settings = resolveSettings({ ...options, calibration });
  checkOrder(settings, run);
  if (typeof out === 'string' && isPath(out))
    await checkOutside(out, [typeof model === 'string' ? model : model.folder]);
  const lock = await lockFolder(calibration, force, fs);
  const stop = new AbortController();
  let whole = false;
  try {
    if (force) await empty(calibration);
    if (settings.precision !== 'f32') allowTensorCores(); // the engines of this process start with the record
    const { engine, threads, seed } = options;
    const { maxMemory } = settings;
    const most = Math.floor(maxMemory / 2);
    const record = await recordWhileUsed(
      model,
      // Workers fit on an engine that this machine need not have.
      { text, tokens, sequenceLength, seed, threads, maxMemory: most, ...(!workers.length && { engine }) },
      calibration,
      {
        ...(peers && { peers }),
        fileSystem: fs,
        signal: AbortSignal.any([stop.signal, ...(run.signal ? [run.signal] : [])]),
        onLayer: (progress) => onProgress?.({ kind: 'layer', ...progress }),
      },
    ).catch((error) => {
      throw inWhole(error, maxMemory, (smallest) => 2 * smallest);
    });
    const { memoryBytes } = record.plan;
    try {
      onProgress?.({ kind: 'record', plan: record.plan });
      const all = { ...options, calibration, maxMemory: maxMemory - memoryBytes };
      const result = await compress(model, out, all, { ...run, record });
      whole = true;
      return result;
    } catch (error) {
      throw inWhole(error, maxMemory, (smallest) => (memoryBytes < most ? smallest + memoryBytes : 2 * smallest));
    } finally {
      stop.abort(); // a layer may be running that is no longer needed
      await record.close();
    }
  } finally {
    await lock.release();
    if (whole) await rm(calibration, { recursive: true, force: true });
    else await rmdir(calibration).catch(() => {}); // it is kept if there is anything in it
  }
}

/** A folder beside the result, or if that is no folder in the system's temporary folder. */
function workspaceOf(model: Source, out: OutputPlace): string {
  if (typeof out === 'string' && isPath(out)) {
    const folder = resolve(out);
    return join(dirname(folder), `.mobe-record-${basename(folder)}`);
  }
  const names = [typeof model === 'string' ? model : model.folder, typeof out === 'string' ? out : ''];
  return join(tmpdir(), `mobe-record-${createHash('sha256').update(JSON.stringify(names)).digest('hex').slice(0, 12)}`);
}

/** Throws `OptionError` for work that does not take the layers one after another. */
function checkOrder({ sensitivity }: Settings, { ownStage }: RunOptions): void {
  if (sensitivity === 'kl')
    throw new OptionError(
      '--sensitivity',
      'kl goes through the layers more than once. Make a record with "mobe calibrate" and give it as --calibration, or leave it out',
    );
  if (ownStage)
    throw new OptionError(
      '--calibrate',
      'a stage of your own may drop groups, and these are finished last. Make a record with "mobe calibrate" and give it as --calibration',
    );
}

async function empty(folder: string): Promise<void> {
  for (const name of await readdir(folder))
    if (name !== LOCK_FILE) await rm(join(folder, name), { recursive: true, force: true });
}
