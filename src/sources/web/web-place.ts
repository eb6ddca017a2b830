/** A place on a server: which files it has, and how each is asked for. The hub, file servers and S3 are places. */
import type { MobeError } from '../../errors.js';
import type { Answer } from './web-client.js';

/** A file of a place. */
export interface WebFile {
  /** Relative to the place, with "/" between its parts. */
  readonly path: string;
  readonly bytes: number;
  /** A number that changes with the file's content, as well as the server tells. */
  readonly version: number;
  /** The SHA-256 of its content in hexadecimal, if the server tells it. */
  readonly sha256?: string | undefined;
  /** A local copy with the same content. */
  readonly local?: string | undefined;
}

/** Fills an array with bytes of a file. */
export type Fetch = (position: number, target: Uint8Array) => Promise<void>;

/** How a file is asked for. */
export interface Link {
  readonly url: string;
  readonly headers: Readonly<Record<string, string>>;
  /** It may expire; then `WebPlace.forgetLink` makes `link` find a new one. */
  readonly expires?: boolean;
}

export interface WebListing {
  readonly files: readonly WebFile[];
  /** The commit that all files are of, if the place has such a thing. */
  readonly commit?: string | undefined;
  /** Contents of files that were read for the listing, by path. */
  readonly read?: ReadonlyMap<string, Uint8Array> | undefined;
}

export interface WebPlace {
  /** Finds out which files there are. */
  list(): Promise<WebListing>;
  link(file: WebFile): Promise<Link>;
  forgetLink?(file: WebFile): void;
  /** The error for an answer that refuses. Its body was not read. */
  refusal(answer: Answer, file: WebFile | undefined): Promise<MobeError>;
  /** Makes a local copy of a file and returns its path. Absent if nothing is kept. */
  keep?(file: WebFile, fetch: Fetch): Promise<string>;
  /** Finds whether a file still has its version. Absent if it cannot change. */
  current?(file: WebFile): Promise<Pick<WebFile, 'bytes' | 'version'>>;
}
