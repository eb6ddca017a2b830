import { describeDifference, readReport } from '../../src/conversion/existing-output.js';
import type { FactorContext } from '../../src/conversion/factor-files.js';
import { FactorFolder } from '../../src/conversion/factor-folder.js';
import type { GroupPlan } from '../../src/conversion/group-plan.js';
import { UnknownSchemeError } from '../../src/errors.js';
import { isPath } from '../../src/location.js';
import { checkOutside } from '../../src/output/folder-checks.js';
import type { FolderOptions, OpenedOutput } from './open-folder.js';
import type { OutputPlace } from './open-output.js';

export interface FactorRequest {
  /** All that is to be there in the end. */
  readonly groups: readonly GroupPlan[];
  readonly context: FactorContext;
  /** Folders it must not lie in. */
  readonly inputs: readonly string[];
}

/** Opens the place that factor files go to: a folder of this machine, or an object that is handed in. */
export async function openFactors(
  place: OutputPlace,
  { groups, context, inputs }: FactorRequest,
  { force, fileSystem: fs }: FolderOptions,
): Promise<OpenedOutput> {
  if (typeof place !== 'string') return { output: place };
  if (!isPath(place)) throw new UnknownSchemeError(place, []);
  await checkOutside(place, inputs);
  const output = await FactorFolder.create(place, { groups, context, force, fs });
  if (!output.complete) return { output };
  // A run that was killed after its last group has left no record, and one of other layers has left another.
  const record = await readReport(place);
  if (!record || describeDifference(record, { kind: 'fit', ...context })) return { output };
  await output.commit();
  return { done: record };
}
