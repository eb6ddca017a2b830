/** Opens the place a conversion writes to: a folder here, another machine's, or a pipe. */

import { examineOutput, type WantedOutput } from '../../src/conversion/existing-output.js';
import type { StoredReport } from '../../src/conversion/run-report.js';
import type { FileSystem } from '../../src/file-system.js';
import { checkOutside, type Output, OutputFolder } from '../../src/output/output-folder.js';
import type { RunIdentity } from '../../src/output/unfinished-run.js';
import { isRemote } from '../../src/sources/files.js';
import { PIPE, pipeOutput, remoteOutput } from '../machines/remote-output.js';
import type { RunOptions } from '../run-options.js';

export interface OutputRequest {
  /** What is to be there in the end. */
  readonly wanted: WantedOutput;
  /** Bytes the run will write. */
  readonly neededBytes: number;
  /** Folders it must not lie in. */
  readonly inputs: readonly string[];
  /** Undefined: an interrupted run cannot be continued. */
  readonly identity?: RunIdentity;
}

/** The very result may be there already, whole. */
export type OpenedOutput = { readonly done: StoredReport } | { readonly output: Output };

export async function openOutput(location: string, request: OutputRequest, run: RunOptions): Promise<OpenedOutput> {
  if (location === PIPE) return { output: await pipeOutput(request, run) };
  if (isRemote(location)) return remoteOutput(location, request, run);
  return openFolder(location, request, run);
}

export async function openFolder(
  folder: string,
  { wanted, neededBytes, inputs, identity: run }: OutputRequest,
  { force = false, fileSystem }: { readonly force?: boolean | undefined; readonly fileSystem?: FileSystem | undefined },
): Promise<{ readonly done: StoredReport } | { readonly output: OutputFolder }> {
  await checkOutside(folder, inputs);
  const options = { run, force, ...(fileSystem && { fs: fileSystem }) };
  const halfMoved = await OutputFolder.finishCommit(folder, options);
  const existing = await examineOutput(folder, wanted, force);
  if ('done' in existing) return existing;
  const replaces = [...new Set([...existing.replaces, ...halfMoved])];
  return { output: await OutputFolder.create(folder, { ...options, neededBytes, replaces }) };
}
