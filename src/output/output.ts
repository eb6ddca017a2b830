import type { PartEntry } from './journal.js';
import type { ShardLayout } from './layout.js';
import type { HashedPart } from './manifest.js';
import type { FinishedUnits, Unit } from './unfinished-run.js';

/**
 * Takes the files of a result: shards, which are reserved and then filled in any order, and small files. Calls come in this
 * order: first `resume`, once, if it is there; then `reserve`, `write`, `finish`, `writeText` and `writeFile`, any number of
 * times; at the end `commit` or `abandon`, once. Implementations: a local folder, a folder of factor files, another machine, a
 * pipe.
 */
export interface Output {
  /** A local folder for saved states of fits. It is removed when the result is complete. */
  readonly workspace?: string;
  /** True if the result is on another machine. Then a failure to save a state in the workspace is no reason to stop. */
  readonly elsewhere?: boolean;
  /** Tells this process from others that write into the same workspace; undefined if there can be none. */
  readonly writer?: string | undefined;
  /**
   * Returns the units that an interrupted run of the same identity has finished, after checking their bytes. Must be called
   * before anything is reserved.
   * @param onBytes called with the number of bytes checked so far; may throw to stop
   */
  resume?(
    layouts: readonly ShardLayout[],
    units: readonly Unit[],
    onBytes: (bytes: number) => void,
  ): Promise<FinishedUnits>;
  /** Creates a shard at its full size, with its header. Its tensors can then be written in any order. */
  reserve(layout: ShardLayout): Promise<void>;
  /**
   * Writes part of a reserved tensor, starting at byte `offset` of the tensor. Several writes may run at once.
   * @param hashes hashes that become valid once this write completes: those of `data`, as `hashParts` computes them, or of a
   * longer part that ends with `data`. An output that can be resumed records them in its journal.
   */
  write(tensor: string, offset: number, data: Uint8Array, hashes?: readonly HashedPart[]): Promise<void>;
  /** True if `write` still uses `data` after it has resolved, so that the caller must not reuse the memory. */
  readonly retains?: boolean;
  /** The parts of the finished units that `resume` has found, as they were written. */
  readonly finishedParts?: readonly PartEntry[];
  /**
   * Called when all parts of a unit were passed to `write`. Resolves when they are written. A resumed run gets `note` (JSON)
   * back.
   */
  finish?(unit: Unit, note: unknown): Promise<void>;
  /** Puts on disk what was written so far. */
  sync?(): Promise<void>;
  /** Writes a small file, of UTF-8 text. */
  writeText(file: string, text: string): Promise<void>;
  /**
   * Writes a small file.
   * @param bytes of all the content
   */
  writeFile(file: string, bytes: number, content: AsyncIterable<Uint8Array>): Promise<void>;
  /**
   * Gives all files their final names. Throws `IncompleteOutputError` if a reserved byte was not written.
   * @param last files without which a loader sees nothing. Old ones are removed first, new ones appear last.
   */
  commit(last: readonly string[]): Promise<void>;
  /**
   * Ends the output without a result. Removes what was written so far; files of an earlier run stay.
   * @param keep keeps finished work for a later run, if there is any
   * @returns whether anything was kept
   */
  abandon(keep?: boolean): Promise<boolean>;
  /** Registers a listener for the loss of the output while nothing is being written to it. */
  onLost?(listener: (error: Error) => void): void;
}
