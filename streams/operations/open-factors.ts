import { shortSettings } from '../../src/conversion/allocation.js';
import { describeDifference, readReport, type WantedOutput } from '../../src/conversion/existing-output.js';
import type { FactorContext } from '../../src/conversion/factor-files.js';
import { FactorFolder } from '../../src/conversion/factor-folder.js';
import type { GroupPlan } from '../../src/conversion/group-plan.js';
import { UnknownSchemeError } from '../../src/errors.js';
import { isPath, publicLocation } from '../../src/location.js';
import { checkOutside } from '../../src/output/folder-checks.js';
import type { FolderOptions, OpenedOutput } from './open-folder.js';
import type { OutputPlace } from './open-output.js';

/** The factor files that a run will write. */
export interface FactorRequest {
  /** The kind of the run, as its record has it. */
  readonly kind: WantedOutput['kind'];
  /** All groups that the folder must have in the end. */
  readonly groups: readonly GroupPlan[];
  readonly context: FactorContext;
  /** Folders in which the factor folder must not lie. */
  readonly inputs: readonly string[];
  /** Whether other processes write other groups into the same folder. */
  readonly shared: boolean;
}

/**
 * Opens the place for factor files: a local folder, or an object of the caller. Throws `UnknownSchemeError` for a URL, and an
 * `InputError` if the folder cannot take the files.
 */
export async function openFactors(
  place: OutputPlace,
  { kind, groups, context, inputs, shared }: FactorRequest,
  { force, fileSystem: fs }: FolderOptions,
): Promise<OpenedOutput> {
  if (typeof place !== 'string') return { output: place };
  if (!isPath(place)) throw new UnknownSchemeError(publicLocation(place), [], 'write');
  await checkOutside(place, inputs);
  const { sourceFingerprint, settings } = context;
  const short = { sourceFingerprint, settings: shortSettings(settings) };
  const output = await FactorFolder.create(place, { groups, context: short, force, shared, fs });
  if (!output.complete || shared) return { output };
  // A run that was killed after its last group left no record. A run of other layers left a different record.
  const record = await readReport(place);
  if (!record || describeDifference(record, { kind, sourceFingerprint, settings })) return { output };
  await output.commit();
  return { done: record };
}
