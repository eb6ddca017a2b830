/** Opens the place a conversion writes to: a folder here, another machine's, or a pipe. */
import { isRemote } from '../src/checkpoint/files.js';
import { checkOutside, type Output, OutputFolder } from '../src/checkpoint/output-folder.js';
import { examineOutput, type WantedOutput } from '../src/conversion/existing-output.js';
import type { StoredReport } from '../src/conversion/report.js';
import type { RunOptions } from './progress.js';
import { PIPE, pipeOutput, remoteOutput } from './remote/remote-output.js';

export interface OutputRequest {
  /** What is to be there in the end. */
  readonly wanted: WantedOutput;
  /** Bytes the run will write. */
  readonly neededBytes: number;
  /** Folders it must not lie in. */
  readonly inputs: readonly string[];
}

/** The very result may be there already, whole. */
export type OpenedOutput = { readonly done: StoredReport } | { readonly output: Output };

export async function openOutput(location: string, request: OutputRequest, run: RunOptions): Promise<OpenedOutput> {
  if (location === PIPE) return { output: await pipeOutput(request) };
  if (isRemote(location)) return remoteOutput(location, request, run);
  return openFolder(location, request, run.force ?? false);
}

export async function openFolder(
  folder: string,
  { wanted, neededBytes, inputs }: OutputRequest,
  force: boolean,
): Promise<OpenedOutput> {
  await checkOutside(folder, inputs);
  const existing = await examineOutput(folder, wanted, force);
  if ('done' in existing) return existing;
  return { output: await OutputFolder.create(folder, { neededBytes, replaces: existing.replaces }) };
}
