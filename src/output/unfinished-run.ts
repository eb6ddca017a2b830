/** Finds and checks the work that an interrupted run left in the partial folder. */
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

/** The identity that decides whether a run can be resumed. */
export interface RunIdentity {
  /** Everything that decides the bytes of the result, as JSON. */
  readonly identity: unknown;
  /** Why the work of a run with another identity cannot be used, as text; undefined if some of it can. */
  readonly difference: (other: unknown) => string | undefined;
  /** Source files that have changed since the run with the other identity. Units made from them are done again. */
  readonly changedSources: (other: unknown) => readonly string[];
}

/** A unit of work, which is finished completely or not at all. */
export interface Unit {
  readonly id: string;
  /** The bytes of the output that the unit writes. */
  readonly parts: ReadonlyArray<{ readonly tensor: string; readonly offset: number; readonly bytes: number }>;
  /** Whether the unit counts as finished only after a note (`Output.finish`). */
  readonly noted: boolean;
  /** Source files that decide the unit's bytes, named as in `RunIdentity`. */
  readonly sources?: readonly string[];
}

/** Finished units by id, with the note of each. */
export type FinishedUnits = ReadonlyMap<string, unknown>;

/** The ending of files with saved states of fits. */
export const STATE_SUFFIX = '.state';

/** Reads the journal of an unfinished run. Returns undefined if there is no work to resume. */
export async function findUnfinished(folder: string, fs: FileSystem): Promise<JournalContent | undefined> {
  const partial = join(folder, PARTIAL_FOLDER);
  const journal = await readJournal(join(partial, JOURNAL_FILE), fs);
  if (!journal) return undefined;
  const states = (await fs.readdir(partial)).some((name) => name.endsWith(STATE_SUFFIX));
  return journal.entries.length > 0 || states ? journal : undefined;
}

/**
 * Throws `UnfinishedRunError` if the unfinished run is a different one, or if this run cannot be resumed (`run` is undefined).
 */
export function checkSameRun(folder: string, { identity }: JournalContent, run: RunIdentity | undefined): void {
  const difference = run ? run.difference(identity) : 'what comes now cannot be continued';
  if (difference !== undefined) throw new UnfinishedRunError(folder, difference);
}

/** The work that could be recovered. */
export interface Recovered {
  /** The undamaged shards, by file. The bytes of finished units count as written. */
  readonly shards: ReadonlyMap<string, ShardWriter>;
  readonly finished: FinishedUnits;
  /** The entries of the finished units. All other work is done again. */
  readonly entries: readonly JournalEntry[];
  /** The shards that were sent away complete. */
  readonly away: readonly string[];
}

/** Decides which units are finished. A shard of which any is not counts as lost, since nothing can be written into it. */
function believe(
  entries: readonly JournalEntry[],
  sound: ReadonlySet<PartEntry>,
  layouts: readonly ShardLayout[],
  units: readonly Unit[],
  away: readonly string[],
) {
  const fileOf = new Map(layouts.flatMap(({ file, tensors }) => tensors.map(({ name }) => [name, file] as const)));
  const sent = new Set(away);
  const isAway = (tensor: string): boolean => sent.has(fileOf.get(tensor) ?? '');
  for (;;) {
    const believed = entries.filter(
      (entry) => !('part' in entry) || sound.has(entry.part) || isAway(entry.part.tensor),
    );
    const { finished, entries: kept } = finishedUnits(units, believed);
    const unfinished = units.filter(({ id }) => !finished.has(id));
    const torn = unfinished.flatMap(({ parts }) => parts.filter(({ tensor }) => isAway(tensor)));
    if (torn.length === 0) return { finished, kept, sent: [...sent] };
    for (const { tensor } of torn) sent.delete(fileOf.get(tensor) as string);
  }
}

/**
 * Checks the entries of a journal against the bytes on disk.
 * @param away shards that were sent away. What the journal says of them is believed, unless work on them is unfinished.
 * @param onBytes called with the number of bytes read so far; may throw to stop
 */
export async function recoverUnits(
  partial: string,
  { entries }: JournalContent,
  layouts: readonly ShardLayout[],
  units: readonly Unit[],
  fs: FileSystem,
  onBytes: (bytes: number) => void,
  away: readonly string[] = [],
): Promise<Recovered> {
  const shards = new Map<string, ShardWriter>();
  const holders = new Map<string, ShardWriter>();
  try {
    for (const layout of layouts) {
      const path = join(partial, layout.file);
      if (away.includes(layout.file)) {
        await fs.remove(path); // the run was interrupted before it did that
        continue;
      }
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
    const { finished, kept, sent } = believe(entries, sound, layouts, units, away);
    for (const { id, parts } of units) {
      if (!finished.has(id)) continue;
      for (const { tensor, offset, bytes } of parts) holders.get(tensor)?.trust(tensor, offset, bytes);
    }
    return { shards, finished, entries: kept, away: sent };
  } catch (error) {
    for (const shard of shards.values()) await shard.abandon();
    throw error;
  }
}

/** Returns the units that are completely covered by valid entries, and these entries. */
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

/** Returns the entries that cover a part without a gap; undefined if there is a gap. */
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
