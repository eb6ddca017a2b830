/** Opens a source: a location, opened according to its scheme, or an object of the caller. */
import { type Checkpoint, openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { PipeSourceError, UnknownSchemeError } from '../errors.js';
import type { FileSystem } from '../file-system.js';
import { normaliseLocation, PIPE, schemeOf } from '../location.js';
import type { PeerOptions } from '../transport/peer-options.js';
import { type Files, LocalFiles, type SourceFolder } from './files.js';

/** A location, a folder with an object that reads it, or an open checkpoint. */
export type Source = string | SourceFolder | Checkpoint;

/** Options for opening a source. */
export interface SourceOptions {
  /** Token, certificates and timeouts for other machines. */
  readonly peers?: PeerOptions | undefined;
  /** File operations for local files; default: those of the system. */
  readonly fileSystem?: FileSystem | undefined;
}

/** Makes an object that reads the files at a location. It connects at the first read, not before. */
export type OpenFiles = (location: string, options: SourceOptions) => Files;

const schemes = new Map<string, OpenFiles>();

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
  const folder = normaliseLocation(source);
  if (scheme === undefined) return { folder, files: new LocalFiles(options.fileSystem) };
  const open = schemes.get(scheme);
  if (!open) throw new UnknownSchemeError(source, [...schemes.keys()]);
  return { folder, files: open(folder, options) };
}

/** Opens and validates a checkpoint. Throws an `InputError` that names the file and the problem. */
export async function openSource(source: Source, options: SourceOptions = {}): Promise<Checkpoint> {
  if (typeof source !== 'string' && 'tensors' in source) return source;
  return openCheckpoint(openFiles(source, options));
}

/** The name of a source in messages. */
export const sourceName = (source: Source): string => (typeof source === 'string' ? source : source.folder);
