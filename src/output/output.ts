import type { PartEntry } from './journal.js';
import type { ShardLayout } from './layout.js';
import type { HashedPart } from './manifest.js';
import type { FinishedUnits, Unit } from './unfinished-run.js';

/**
 * Takes the files of a result: shards, which are reserved and then filled in any order, and small files. Its life: `resume`, once and
 * before all else, where there is one; `reserve`, `write`, `finish`, `writeText` and `writeFile` as often as needed; then `commit` or
 * `abandon`, once. Implementations: a folder of this machine, a folder of factor files, another machine, a pipe.
 */
export interface Output {
  /** A folder of this machine for what helps to go on after an interruption; removed once the result is whole. */
  readonly workspace?: string;
  /** The result lies on another machine: the workspace shares no disk with it, and is worth less than the result. */
  readonly elsewhere?: boolean;
  /**
   * What an interrupted run of the same identity has finished; every claim is checked against the bytes there are. To be called
   * before anything is reserved.
   * @param onBytes told how many bytes were checked; may throw
   */
  resume?(
    layouts: readonly ShardLayout[],
    units: readonly Unit[],
    onBytes: (bytes: number) => void,
  ): Promise<FinishedUnits>;
  /** Makes room for a shard at its full size, with its header, ready for writes in any order. */
  reserve(layout: ShardLayout): Promise<void>;
  /**
   * Writes part of a reserved tensor, `offset` bytes into it. Several may be under way.
   * @param hashes that are sound with it: of `data`, as `hashParts` gives them, or of more that ends with it. An output that can be
   * continued makes a note of them.
   */
  write(tensor: string, offset: number, data: Uint8Array, hashes?: readonly HashedPart[]): Promise<void>;
  /** `write` goes on using `data` after it has resolved, so its memory must not be used again. */
  readonly retains?: boolean;
  /** The parts of finished units that `resume` has found, as they were written. */
  readonly finishedParts?: readonly PartEntry[];
  /** All of a unit has been handed over; resolves once it is written. `note` (JSON) is given back where the run is resumed. */
  finish?(unit: Unit, note: unknown): Promise<void>;
  /** Puts on disk what was written so far. */
  sync?(): Promise<void>;
  writeText(file: string, text: string): Promise<void>;
  /** @param bytes of all the content */
  writeFile(file: string, bytes: number, content: AsyncIterable<Uint8Array>): Promise<void>;
  /**
   * Puts everything under its final name. Throws if any reserved byte was not written.
   * @param last files without which a loader sees nothing: the old ones go first, the new ones come last.
   */
  commit(last: readonly string[]): Promise<void>;
  /**
   * Gives up: what was written so far is removed; an earlier run's files stay.
   * @param keep leaves it for a run that resumes, where there is anything worth it
   * @returns whether it was left
   */
  abandon(keep?: boolean): Promise<boolean>;
  /** Tells when the place is gone while nobody is writing to it. */
  onLost?(listener: (error: Error) => void): void;
}
