/** A place on a server that takes the files of a result. The hub and S3 are such places. */
import type { SentEntry } from '../output/journal.js';
import type { WebSourceOptions } from '../sources/web/web.js';
import type { Content } from './content.js';

/**
 * A file of a result, relative to the place and known by its SHA-256. Its `version` is the place's own name of the content: an ETag.
 */
export type SentFile = SentEntry;

/** A complete result. */
export interface Publication {
  /** Files that `send` has sent. */
  readonly sent: readonly SentFile[];
  /** The other files, which are small. */
  readonly small: ReadonlyArray<readonly [SentFile, Content]>;
  /** Names of small files without which a loader sees nothing. */
  readonly last: readonly string[];
  /** Files of an earlier result that this one replaces. */
  readonly replaces: readonly string[];
}

/**
 * Takes a result. Before `publish`, no reader sees any of it as a result. Methods throw a `MobeError` that says what to do; a
 * later run can then go on.
 */
export interface Sink {
  /** The files that are there, relative to the place. */
  list(): Promise<string[]>;
  /** Called before the first file is sent: files of an earlier result may go now. */
  begin(replaces: readonly string[]): Promise<void>;
  /** Sends a file, or what the place does not have of it. Its content is checked there. Returns the file with its version. */
  send(file: SentFile, content: Content): Promise<SentFile>;
  /** Which of the files that an earlier run has sent are still there. */
  held(files: readonly SentFile[]): Promise<SentFile[]>;
  publish(result: Publication): Promise<void>;
  /** Removes files that were sent in whole or in part, if they are of no use any more. Failures are ignored. */
  discard(files: readonly string[]): Promise<void>;
  close(): void;
}

export interface SinkOptions extends WebSourceOptions {
  /** Ends what is being sent. */
  readonly signal: AbortSignal;
  /** Called when so many bytes of a file have arrived, or were there before. */
  readonly onSent?: (bytes: number) => void;
}

/** Parts of a file that are sent at a time. */
export const PARTS_AT_ONCE = 4;
