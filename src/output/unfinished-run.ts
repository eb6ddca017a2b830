/** What an interrupted run has left in the partial folder, and how far it can be believed. */
import { join } from 'node:path';
import { UnfinishedRunError } from '../errors.js';
import type { FileSystem } from '../file-system.js';
import { inLanes } from '../in-lanes.js';
import {
  JOURNAL_FILE,
  type JournalContent,
  type JournalEntry,
  PARTIAL_FOLDER,
  type PartEntry,
  partsOf,
  readJournal,
} from './journal.js';
import type { ShardLayout } from './layout.js';
import { HASHES_AT_ONCE } from './sha256.js';
import { ShardWriter } from './shard-writer.js';

/** By which a run knows its own work again. */
export interface RunIdentity {
  /** Everything that decides the bytes of the result. JSON. */
  readonly identity: unknown;
  /** For people: why nothing of a run of another identity can be used; undefined where something can. */
  readonly difference: (other: unknown) => string | undefined;
  /** Files of the source that are not what they were for a run of another identity. Units made from them are done again. */
  readonly changedSources: (other: unknown) => readonly string[];
}

/** Work that is done wholly or not at all. */
export interface Unit {
  readonly id: string;
  /** The bytes of the output that it writes. */
  readonly parts: ReadonlyArray<{ readonly tensor: string; readonly offset: number; readonly bytes: number }>;
  /** It is finished only once that was noted. */
  readonly noted: boolean;
  /** Files of the source that decide its bytes, as `RunIdentity` names them. */
  readonly sources?: readonly string[];
}

/** The units that are finished, and what was noted of each. */
export type FinishedUnits = ReadonlyMap<string, unknown>;

export const STATE_SUFFIX = '.state';

/** Undefined where nothing was left that is worth going on from. */
export async function findUnfinished(folder: string, fs: FileSystem): Promise<JournalContent | undefined> {
  const partial = join(folder, PARTIAL_FOLDER);
  const journal = await readJournal(join(partial, JOURNAL_FILE), fs);
  if (!journal) return undefined;
  const states = (await fs.readdir(partial)).some((name) => name.endsWith(STATE_SUFFIX));
  return journal.entries.length > 0 || states ? journal : undefined;
}

/** Throws `UnfinishedRunError` where it was another run; one that is not to be continued is another than any. */
export function checkSameRun(folder: string, { identity }: JournalContent, run: RunIdentity | undefined): void {
  const difference = run ? run.difference(identity) : 'what comes now cannot be continued';
  if (difference !== undefined) throw new UnfinishedRunError(folder, difference);
}

export interface Recovered {
  /** Those that are in order, with the bytes of finished units counted as written. */
  readonly shards: ReadonlyMap<string, ShardWriter>;
  readonly finished: FinishedUnits;
  /** Of the finished units alone: what else there was is done again. */
  readonly entries: readonly JournalEntry[];
}

/**
 * Compares what the journal claims with what is on disk.
 * @param onBytes told how many bytes were read; may throw
 */
export async function recoverUnits(
  partial: string,
  { entries }: JournalContent,
  layouts: readonly ShardLayout[],
  units: readonly Unit[],
  fs: FileSystem,
  onBytes: (bytes: number) => void,
): Promise<Recovered> {
  const shards = new Map<string, ShardWriter>();
  const holders = new Map<string, ShardWriter>();
  try {
    for (const layout of layouts) {
      const path = join(partial, layout.file);
      const shard = await ShardWriter.reopen(path, layout, fs);
      if (!shard) {
        await fs.remove(path);
        continue;
      }
      shards.set(layout.file, shard);
      for (const tensor of shard.tensors) holders.set(tensor, shard);
    }
    const sound = new Set<PartEntry>();
    let checked = 0;
    await inLanes(HASHES_AT_ONCE, partsOf(entries), async (part) => {
      if (await holders.get(part.tensor)?.holds(part)) sound.add(part);
      checked += part.end - part.start;
      onBytes(checked);
    });
    const believed = entries.filter((entry) => !('part' in entry) || sound.has(entry.part));
    const { finished, entries: kept } = finishedUnits(units, believed);
    for (const { id, parts } of units) {
      if (!finished.has(id)) continue;
      for (const { tensor, offset, bytes } of parts) holders.get(tensor)?.trust(tensor, offset, bytes);
    }
    return { shards, finished, entries: kept };
  } catch (error) {
    for (const shard of shards.values()) await shard.abandon();
    throw error;
  }
}

/** Those of the units that sound entries make up, and these entries alone. */
export function finishedUnits(
  units: readonly Unit[],
  entries: readonly JournalEntry[],
): Pick<Recovered, 'finished' | 'entries'> {
  const written = new Map<string, PartEntry[]>();
  const notes = new Map<string, unknown>();
  for (const entry of entries) {
    if ('done' in entry) notes.set(entry.done, entry.note);
    if (!('part' in entry)) continue;
    const { tensor } = entry.part;
    const before = written.get(tensor);
    if (before) before.push(entry.part);
    else written.set(tensor, [entry.part]);
  }
  const finished = new Map<string, unknown>();
  const kept: JournalEntry[] = [];
  for (const { id, parts, noted } of units) {
    if (noted && !notes.has(id)) continue;
    const found = parts.map((part) => within(part, written.get(part.tensor) ?? []));
    if (found.some((it) => it === undefined)) continue;
    finished.set(id, notes.get(id));
    kept.push(...found.flatMap((it) => (it as PartEntry[]).map((part) => ({ part }))));
    if (noted) kept.push({ done: id, note: notes.get(id) });
  }
  return { finished, entries: kept };
}

/** The entries that make up a part, without a hole or an overlap; undefined where they do not. */
function within({ offset, bytes }: Unit['parts'][number], entries: readonly PartEntry[]): PartEntry[] | undefined {
  const end = offset + bytes;
  const inside = entries.filter((it) => it.start >= offset && it.end <= end);
  inside.sort((a, b) => a.start - b.start);
  let position = offset;
  const found = inside.filter((it) => {
    const follows = it.start === position;
    if (follows) position = it.end;
    return follows;
  });
  return position === end ? found : undefined;
}
