/** Opens a local folder for a result. */
import { examineOutput, type WantedOutput } from '../../src/conversion/existing-output.js';
import type { StoredReport } from '../../src/conversion/run-report.js';
import type { FileSystem } from '../../src/file-system.js';
import { checkOutside, type Output, OutputFolder } from '../../src/output/output-folder.js';
import type { RunIdentity } from '../../src/output/unfinished-run.js';

/** What a place is asked before anything is computed. */
export interface OutputRequest {
  /** Identifies the result. */
  readonly wanted: WantedOutput;
  /** Bytes the run will write. */
  readonly neededBytes: number;
  /** Bytes that are on this disk at a time if finished shards leave it. */
  readonly heldBytes?: number;
  /** Folders in which the result must not lie. Entries that are not local paths are ignored. */
  readonly inputs: readonly string[];
  /** Identity of the run; undefined if it cannot be resumed after an interruption. */
  readonly identity?: RunIdentity;
}

/** An output to write to, or the record of the same result if that is already complete. */
export type OpenedOutput<Opened extends Output = Output> =
  | { readonly done: StoredReport }
  | { readonly output: Opened };

/** Options of `openFolder`. */
export interface FolderOptions {
  readonly force?: boolean | undefined;
  readonly fileSystem?: FileSystem | undefined;
}

/**
 * Opens `folder` for a result, and completes the commit of a run that was killed during it. Throws an `InputError` if other
 * files are in the folder, the disk is too small, or another process writes there.
 */
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
