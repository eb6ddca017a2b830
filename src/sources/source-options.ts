import type { FileSystem } from '../file-system.js';
import type { PeerOptions } from '../transport/peer-options.js';
import type { Files } from './files.js';
import type { WebOptions } from './web/web-options.js';

/** Options for opening a source. */
export interface SourceOptions {
  /** Token, certificates and timeouts for other machines. */
  readonly peers?: PeerOptions | undefined;
  /** File operations for local files; default: those of the system. */
  readonly fileSystem?: FileSystem | undefined;
  /** For sources that are read over HTTP. */
  readonly web?: WebOptions | undefined;
}

/**
 * Makes an object that reads the files at a location. It connects at the first read, not before. Files are named
 * `<public location>/<path>` (`publicLocation`).
 */
export type OpenFiles = (location: string, options: SourceOptions) => Files;
