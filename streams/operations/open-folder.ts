/** Opens a folder of this machine to write a result into. */
import { examineOutput, type WantedOutput } from '../../src/conversion/existing-output.js';
import type { StoredReport } from '../../src/conversion/run-report.js';
import type { FileSystem } from '../../src/file-system.js';
import { checkOutside, type Output, OutputFolder } from '../../src/output/output-folder.js';
import type { RunIdentity } from '../../src/output/unfinished-run.js';

export interface OutputRequest {
  /** The result that is to be there in the end. */
  readonly wanted: WantedOutput;
  /** Bytes the run will write. */
  readonly neededBytes: number;
  /** Folders it must not lie in; those that are no paths of this machine are passed over. */
  readonly inputs: readonly string[];
  /** Undefined: an interrupted run cannot be continued. */
  readonly identity?: RunIdentity;
}

/** The very result may be there already, whole. */
export type OpenedOutput<Opened extends Output = Output> =
  | { readonly done: StoredReport }
  | { readonly output: Opened };

export interface FolderOptions {
  readonly force?: boolean | undefined;
  readonly fileSystem?: FileSystem | undefined;
}

/** Throws an `InputError` where something else is there, the disk is too small, or another process writes there. */
export async function openFolder(
  folder: string,
  { wanted, neededBytes, inputs, identity: run }: OutputRequest,
  { force = false, fileSystem }: FolderOptions,
): Promise<OpenedOutput<OutputFolder>> {
  await checkOutside(folder, inputs);
  const options = { run, force, ...(fileSystem && { fs: fileSystem }) };
  const halfMoved = await OutputFolder.finishCommit(folder, options);
  const existing = await examineOutput(folder, wanted, force);
  if ('done' in existing) return existing;
  const replaces = [...new Set([...existing.replaces, ...halfMoved])];
  return { output: await OutputFolder.create(folder, { ...options, neededBytes, replaces }) };
}
