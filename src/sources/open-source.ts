/** Opens what is read: a location, whose scheme says how, or an object that is handed in. */
import { type Checkpoint, openCheckpoint } from '../checkpoint/open-checkpoint.js';
import { PipeSourceError, UnknownSchemeError } from '../errors.js';
import type { FileSystem } from '../file-system.js';
import { normaliseLocation, PIPE, schemeOf } from '../location.js';
import type { PeerOptions } from '../transport/peer-options.js';
import { type Files, LocalFiles, type SourceFolder } from './files.js';

/** A location, or a folder of files of any kind, or a checkpoint that is open already. */
export type Source = string | SourceFolder | Checkpoint;

export interface SourceOptions {
  /** How other machines are spoken to. */
  readonly peers?: PeerOptions | undefined;
  /** How files of this machine are read. */
  readonly fileSystem?: FileSystem | undefined;
}

/** Makes what reads the files at a location. It connects at the first read, not before. */
export type OpenFiles = (location: string, options: SourceOptions) => Files;

const schemes = new Map<string, OpenFiles>();

/** From now on, locations of this scheme ("ws" for `ws://…`) are read by what `open` makes. */
export function registerSource(scheme: string, open: OpenFiles): void {
  schemes.set(scheme, open);
}

/**
 * The folder of a source, and what reads it. Nothing is read yet. Throws `UnknownSchemeError`, and `PipeSourceError` for a pipe.
 * The files of a location are the caller's to close; those of an object may be closed too, since a later read opens them again.
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

/** Opens and validates a checkpoint. Throws an `InputError` that names what is wrong with which file. */
export async function openSource(source: Source, options: SourceOptions = {}): Promise<Checkpoint> {
  if (typeof source !== 'string' && 'tensors' in source) return source;
  return openCheckpoint(openFiles(source, options));
}

/** A source as people are told it. */
export const sourceName = (source: Source): string => (typeof source === 'string' ? source : source.folder);
