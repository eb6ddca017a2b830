/** Fits one slice of a model's groups into a folder that other slices fill at the same time. */
import { randomBytes } from 'node:crypto';
import { join } from 'node:path';
import { factorFileName } from '../../src/conversion/factor-files.js';
import { encodeSlices, type FitSlice, fitUnits, groupsOfSlice } from '../../src/conversion/fit-slices.js';
import { type CompressOptions, repairsDown, resolveSettings } from '../../src/conversion/settings.js';
import { FolderLockedError, OptionError } from '../../src/errors.js';
import { nodeFileSystem, writeSynced } from '../../src/file-system.js';
import { isPath } from '../../src/location.js';
import { listOutput } from '../../src/output/folder-checks.js';
import { PARTIAL_FOLDER } from '../../src/output/journal.js';
import { asWriteError } from '../../src/output/shard-writer.js';
import type { Source } from '../machines/remote-files.js';
import type { RunOptions, RunResult } from '../run-options.js';
import { wantsAllocation } from './allocate.js';
import { tellPlan } from './fit-experts.js';
import { fitPlanned, planFit } from './fit-groups.js';
import type { OutputPlace } from './open-output.js';

/** Throws `OptionError` if there is no such slice, or slices cannot be fitted with these options. */
function checkSlice({ index, count }: FitSlice, folder: OutputPlace, options: CompressOptions): string {
  if (!(Number.isSafeInteger(index) && Number.isSafeInteger(count) && index >= 0 && index < count))
    throw new OptionError('--shard', `slices are counted from 0: of ${count} slices the last is ${count - 1}/${count}`);
  if (typeof folder !== 'string' || !isPath(folder))
    throw new OptionError('--shard', 'slices write into a folder that all machines see, not to an address');
  if (wantsAllocation(resolveSettings(options)))
    throw new OptionError(
      '--shard',
      'each slice would decide by itself how bases are spread, from short fits of the whole model. Give --allocate uniform, or fit in one process with --workers',
    );
  return folder;
}

/**
 * Fits a slice. The last slice that ends also writes the record of the whole fit. Throws `OptionError`, and otherwise as
 * `fitFactors` does.
 */
export async function fitSlice(
  model: Source,
  place: OutputPlace,
  slice: FitSlice,
  options: CompressOptions,
  run: RunOptions,
): Promise<RunResult> {
  const started = performance.now();
  const folder = checkSlice(slice, place, options);
  const fit = await planFit(model, options, run);
  try {
    const units = fitUnits(fit.plan.groups, repairsDown(fit.planned.settings));
    const files = units.map((groups) => groups.map(factorFileName));
    const list = (): Promise<void> => writeList(folder, encodeSlices(files, slice.count), run);
    const onStart = async (): Promise<void> => {
      await list();
      await tellPlan(fit, run);
    };
    const result = await fitPlanned(fit, folder, run, started, { groups: groupsOfSlice(units, slice), onStart });
    await list();
    const held = new Set(await listOutput(folder));
    if (files.flat().every((file) => held.has(file)))
      await writeRecord(() => fitPlanned(fit, folder, { ...run, force: false }));
    return result;
  } finally {
    await fit.record?.close();
  }
}

/** Writes the list of slices if it is not there, under a name of this process first, because other slices write the same list. */
async function writeList(
  folder: string,
  { file, text }: { readonly file: string; readonly text: string },
  { fileSystem: fs = nodeFileSystem }: RunOptions,
): Promise<void> {
  if ((await listOutput(folder))?.includes(file)) return;
  const path = join(folder, PARTIAL_FOLDER, `${file}.${randomBytes(6).toString('hex')}`);
  try {
    await fs.mkdir(join(folder, PARTIAL_FOLDER));
    await writeSynced(fs, path, [new TextEncoder().encode(text)]);
    await fs.rename(path, join(folder, file));
  } catch (error) {
    throw asWriteError(join(folder, file), error);
  }
}

/** Runs the fit of all groups, which finds all files finished. Two slices that end at once may both try. */
async function writeRecord(finish: () => Promise<unknown>): Promise<void> {
  try {
    await finish();
  } catch (error) {
    if (!(error instanceof FolderLockedError)) throw error;
  }
}
