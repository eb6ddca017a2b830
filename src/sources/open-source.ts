/** Opens a source: a location, opened according to its scheme, or an object of the caller. */
import { type Checkpoint, openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { NotACheckpointError, PipeSourceError, UnknownSchemeError } from '../errors.js';
import { isPath, normaliseLocation, PIPE, publicLocation, schemeOf } from '../location.js';
import { LocalFiles, type SourceFolder } from './files.js';
import { hubFiles } from './hub/hub-files.js';
import { plainFiles } from './plain-server/plain-files.js';
import { s3Files } from './s3/s3-files.js';
import type { OpenFiles, SourceOptions } from './source-options.js';

export type { OpenFiles, SourceOptions } from './source-options.js';

/** A location, a folder with an object that reads it, or an open checkpoint. */
export type Source = string | SourceFolder | Checkpoint;

const schemes = new Map<string, OpenFiles>([
  ['hf', hubFiles],
  ['https', plainFiles],
  ['http', plainFiles],
  ['s3', s3Files],
]);

/** Registers `open` for locations of a scheme, for example "ws" for `ws://…`. It replaces an earlier one. */
export function registerSource(scheme: string, open: OpenFiles): void {
  schemes.set(scheme, open);
}

/**
 * Returns the folder of a source and the object that reads it. Reads nothing yet. Throws `UnknownSchemeError`, and
 * `PipeSourceError` for a pipe. The caller closes the files; they can be read again after that.
 */
export function openFiles(source: Source, options: SourceOptions = {}): SourceFolder {
  if (typeof source !== 'string') return source;
  const scheme = schemeOf(source);
  if (scheme === PIPE) throw new PipeSourceError();
  const folder = publicLocation(source);
  if (scheme === undefined) return { folder, files: withHint(source, new LocalFiles(options.fileSystem)) };
  const open = schemes.get(scheme);
  if (!open) throw new UnknownSchemeError(folder, [...schemes.keys()]);
  return { folder, files: open(normaliseLocation(source), options) };
}

/** Local files. If their folder is not there but could be the name of a model on the hub, the error says so. */
function withHint(source: string, files: LocalFiles): LocalFiles {
  if (!HUB_NAME.test(source)) return files;
  const list = files.list.bind(files);
  files.list = async (folder) => {
    try {
      return await list(folder);
    } catch (error) {
      if (!(error instanceof NotACheckpointError) || folder !== publicLocation(source)) throw error;
      throw new NotACheckpointError(folder, error.reason, `The model of that name on the hub is hf://${source}.`);
    }
  };
  return files;
}

/** The form of a model's name on the hub. */
const HUB_NAME = /^\w[\w.-]*\/\w[\w.-]*$/;

/** Opens and validates a checkpoint. Throws an `InputError` that names the file and the problem. */
export async function openSource(source: Source, options: SourceOptions = {}): Promise<Checkpoint> {
  if (typeof source !== 'string' && 'tensors' in source) return source;
  return openCheckpoint(openFiles(source, options));
}

/** The name of a source in messages, without secrets. */
export function sourceName(source: Source): string {
  if (typeof source !== 'string') return source.folder;
  return isPath(source) ? source : publicLocation(source);
}
