import { dirname, join } from 'node:path';
import { isHidden, isPlainPath } from '../checkpoint/plain-path.js';
import { MobeError, OutputNotWritableError, UnfinishedRunError, UnsafePathError, WriteError } from '../errors.js';
import { type FileSystem, nodeFileSystem, writeSynced } from '../file-system.js';
import { clearPartial, moveFiles } from './commit.js';
import { checkDisk, listOutput, notEmpty, removeIfEmpty, removeLink } from './folder-checks.js';
import { type FolderLock, lockFolder } from './folder-lock.js';
import {
  JOURNAL_FILE,
  Journal,
  type JournalContent,
  type JournalEntry,
  PARTIAL_FOLDER,
  type PartEntry,
  partsOf,
  readJournal,
  type SentEntry,
} from './journal.js';
import type { ShardLayout } from './layout.js';
import { type HashedPart, hashParts } from './manifest.js';
import type { Output } from './output.js';
import { PendingUnits } from './pending-units.js';
import { asWriteError, ShardWriter } from './shard-writer.js';
import {
  checkSameRun,
  type FinishedUnits,
  findUnfinished,
  type RunIdentity,
  recoverUnits,
  STATE_SUFFIX,
  type Unit,
} from './unfinished-run.js';

export { checkDisk, checkOutside, listOutput } from './folder-checks.js';
export { PARTIAL_FOLDER } from './journal.js';
export type { Output } from './output.js';

/** Options of `OutputFolder.create`. */
export interface OutputFolderOptions {
  /** Bytes that the run will write. The free disk space is checked before anything is created. */
  neededBytes: number;
  /** Files of an earlier run, to remove when the new ones are complete. Any other file in the folder is an error. */
  replaces?: readonly string[];
  /** Identity of the run; undefined if it cannot be resumed after an interruption. */
  run?: RunIdentity | undefined;
  /** Discards the work of an unfinished run, and takes the lock of another machine. */
  force?: boolean;
  fs?: FileSystem;
}

/** Bytes after which written data is put on disk, while writing goes on. A power failure loses at most twice as much. */
const SYNC_BYTES = 64 * 2 ** 20;

/** An output in a local folder. Files lie in a partial folder until `commit` moves them to their final names. */
export class OutputFolder implements Output {
  private readonly shards = new Map<string, ShardWriter>();
  private readonly holder = new Map<string, ShardWriter>();
  private readonly files = new Set<string>();
  private journal: Journal | undefined;
  /** The journal entries of the finished units that `resume` has found. */
  finishedEntries: readonly JournalEntry[] = [];
  /** Shards that are not in the folder any more. */
  away: readonly SentEntry[] = [];
  private unsynced = 0;
  /** The last `sync`. */
  private syncing: Promise<void> = Promise.resolve();
  private readonly pending = new PendingUnits();
  private committing = false;

  private constructor(
    readonly folder: string,
    private readonly replaces: readonly string[],
    private readonly lock: FolderLock,
    private readonly run: RunIdentity | undefined,
    private found: JournalContent | undefined,
    private readonly fs: FileSystem,
  ) {}

  /**
   * Checks the folder and the disk. Then creates and locks the partial folder, or opens that of an interrupted run. Throws an
   * `InputError` if other files or another unfinished run are there, the disk is too small, or another process has the lock.
   */
  static async create(folder: string, options: OutputFolderOptions): Promise<OutputFolder> {
    const { neededBytes, replaces = [], run, force = false, fs = nodeFileSystem } = options;
    const checkForeign = async (): Promise<void> => {
      const foreign = (await listOutput(folder))?.filter((name) => !replaces.includes(name));
      if (foreign?.length) throw notEmpty(folder, foreign, force);
    };
    await checkForeign();
    const partial = join(folder, PARTIAL_FOLDER);
    await removeLink(partial);
    const before = force ? undefined : await findUnfinished(folder, fs).catch(() => undefined);
    await checkDisk(folder, neededBytes - partBytes(before), fs);
    let lock: FolderLock | undefined;
    try {
      lock = await lockFolder(partial, force, fs);
      await checkForeign(); // another run may have finished in the meantime
      const found = force ? undefined : await findUnfinished(folder, fs);
      if (found) checkSameRun(folder, found, run);
      else await clearPartial(folder, fs);
      return new OutputFolder(folder, replaces, lock, run, found, fs);
    } catch (error) {
      await lock?.release();
      await removeIfEmpty(folder, fs);
      if (error instanceof MobeError) throw error;
      throw new OutputNotWritableError(folder, (error as Error).message);
    }
  }

  /**
   * Completes the renames of a run that ended in the middle of them. Does nothing with `force`, which discards that run. Throws
   * `UnfinishedRunError` if it was another run.
   * @returns with `force`, the files of the incomplete commit, which the new run must replace
   */
  static async finishCommit(
    folder: string,
    { run, force = false, fs = nodeFileSystem }: Omit<OutputFolderOptions, 'neededBytes' | 'replaces'>,
  ): Promise<readonly string[]> {
    const partial = join(folder, PARTIAL_FOLDER);
    await removeLink(partial);
    const path = join(partial, JOURNAL_FILE);
    const commitIn = (journal: JournalContent | undefined) =>
      journal?.entries.flatMap((entry) => ('commit' in entry ? [entry.commit] : [])).at(-1);
    const before = commitIn(await readJournal(path, fs).catch(() => undefined));
    if (!before) return [];
    if (force) return [...before.files, ...before.replaces].map((file) => file.split('/')[0] as string);
    const lock = await lockFolder(partial, force, fs);
    try {
      const found = await readJournal(path, fs);
      const commit = commitIn(found);
      if (!found || !commit) return []; // another process has completed it
      if (found.identity !== null) {
        checkSameRun(folder, found, run);
        // The result is complete, but made from the source before it changed.
        const [changed] = run?.changedSources(found.identity) ?? [];
        if (changed) throw new UnfinishedRunError(folder, `its source's ${changed} was written to or copied since`);
      }
      await moveFiles(folder, commit, fs);
      await clearPartial(folder, fs);
    } catch (error) {
      throw error instanceof MobeError ? error : asWriteError(folder, error);
    } finally {
      await lock.release();
      await removeIfEmpty(folder, fs);
    }
    return [];
  }

  /** Whether an interrupted run of this identity was found. */
  get unfinished(): boolean {
    return this.found !== undefined;
  }

  get workspace(): string {
    return this.partial();
  }

  get finishedParts(): readonly PartEntry[] {
    return partsOf(this.finishedEntries);
  }

  private partial(file = ''): string {
    return join(this.folder, PARTIAL_FOLDER, file);
  }

  /** The journal that an interrupted run has left. */
  get foundEntries(): readonly JournalEntry[] {
    return this.found?.entries ?? [];
  }

  /** @param sent shards that are not in the folder any more, because they were sent away */
  async resume(
    layouts: readonly ShardLayout[],
    units: readonly Unit[],
    onBytes: (bytes: number) => void,
    sent: readonly SentEntry[] = [],
  ): Promise<FinishedUnits> {
    if (!this.found || !this.run) return new Map();
    const changed = new Set(this.run.changedSources(this.found.identity));
    const valid = units.filter(({ sources = [] }) => !sources.some((it) => changed.has(it)));
    const { shards, finished, entries, away } = await recoverUnits(
      this.partial(),
      this.found,
      layouts,
      valid,
      this.fs,
      onBytes,
      sent.map(({ file }) => file),
    );
    for (const [file, shard] of shards) this.hold(file, shard);
    this.finishedEntries = entries;
    this.away = sent.filter(({ file }) => away.includes(file));
    const replaced = this.found.entries.filter((entry) => 'replaces' in entry);
    await this.openJournal({
      identity: this.run.identity,
      entries: [...replaced, ...this.away.map((it) => ({ sent: it })), ...entries],
    });
    return finished;
  }

  private async openJournal(content: JournalContent): Promise<void> {
    try {
      this.journal = await Journal.create(this.partial(), this.partial(JOURNAL_FILE), content, this.fs);
    } catch (error) {
      throw asWriteError(this.folder, error);
    }
  }

  private hold(file: string, shard: ShardWriter): void {
    this.files.add(file);
    this.shards.set(file, shard);
    for (const tensor of shard.tensors) this.holder.set(tensor, shard);
  }

  async reserve(layout: ShardLayout): Promise<void> {
    checkPlain(this.folder, layout.file);
    if (this.shards.has(layout.file)) return; // it exists since before the interruption
    if (this.away.some(({ file }) => file === layout.file)) return;
    if (this.run && !this.journal) await this.openJournal({ identity: this.run.identity, entries: [] });
    this.hold(layout.file, await ShardWriter.create(this.partial(layout.file), layout, this.fs));
  }

  async write(tensor: string, offset: number, data: Uint8Array, hashes?: readonly HashedPart[]): Promise<void> {
    const shard = this.holder.get(tensor);
    if (!shard) throw new WriteError(this.folder, `no room is reserved for "${tensor}"`);
    await shard.write(tensor, offset, data);
    if (this.journal) {
      for (const hash of hashes ?? (await hashParts(data, offset))) await this.record({ part: { tensor, ...hash } });
    }
    this.pending.check();
    this.unsynced += data.byteLength;
    if (this.journal && this.unsynced >= SYNC_BYTES) {
      const before = this.syncing;
      void this.sync();
      await before;
    }
  }

  /** Completes a shard of which every byte was written, and closes it. It can then be sent away. Returns its path. */
  async detach(file: string): Promise<string> {
    const shard = this.shards.get(file) as ShardWriter;
    await this.sync(); // the journal must not know less than the place that it is sent to
    this.shards.delete(file);
    this.files.delete(file);
    await shard.finish();
    return this.partial(file);
  }

  /** Puts into the journal, and on disk, that a shard was sent away. Then removes it from the folder. */
  async free(sent: SentEntry): Promise<void> {
    await this.note({ sent });
    await this.fs.remove(this.partial(sent.file));
  }

  /** Adds an entry to the journal and puts it on disk. */
  async note(entry: JournalEntry): Promise<void> {
    await this.record(entry);
    await this.sync();
  }

  /** The files that are complete here, with their paths. */
  get held(): ReadonlyArray<readonly [string, string]> {
    return [...this.files].map((file) => [file, this.partial(file)]);
  }

  /** Whether all parts of a unit were written. */
  covers({ parts }: Unit): boolean {
    return parts.every((it) => this.holder.get(it.tensor)?.covers(it.tensor, it.offset, it.bytes));
  }

  async finish(unit: Unit, note: unknown): Promise<void> {
    await this.pending.until(() => this.covers(unit)); // some of its data may still be being written
    await this.record({ done: unit.id, note });
    await this.sync();
  }

  private async record(entry: JournalEntry): Promise<void> {
    try {
      await this.journal?.append(entry);
    } catch (error) {
      throw asWriteError(this.partial(JOURNAL_FILE), error);
    }
  }

  sync(): Promise<void> {
    this.unsynced = 0;
    this.syncing = this.syncing.then(() => this.syncAll());
    this.syncing.catch(() => {}); // callers that wait for it get the error
    return this.syncing;
  }

  private async syncAll(): Promise<void> {
    for (const shard of this.shards.values()) await shard.sync();
    try {
      await this.journal?.sync();
    } catch (error) {
      throw asWriteError(this.partial(JOURNAL_FILE), error);
    }
  }

  async writeText(file: string, text: string): Promise<void> {
    await this.add(file, [new TextEncoder().encode(text)]);
  }

  async writeFile(file: string, _bytes: number, content: AsyncIterable<Uint8Array>): Promise<void> {
    await this.add(file, content);
  }

  private async add(file: string, content: Iterable<Uint8Array> | AsyncIterable<Uint8Array>): Promise<void> {
    checkPlain(this.folder, file);
    const target = this.partial(file);
    try {
      await this.fs.mkdir(dirname(target));
      await writeSynced(this.fs, target, content);
    } catch (error) {
      throw error instanceof MobeError ? error : asWriteError(join(this.folder, file), error);
    }
    this.files.add(file);
  }

  async commit(last: readonly string[]): Promise<void> {
    await this.syncing;
    for (const [file, shard] of this.shards) {
      await shard.finish();
      this.shards.delete(file);
    }
    const commit = { files: [...this.files], last, replaces: this.replaces };
    // A run that cannot be resumed needs no identity: any later run may complete its commit.
    if (!this.journal) await this.openJournal({ identity: null, entries: [] });
    await this.record({ commit });
    this.committing = true;
    await this.sync();
    try {
      await moveFiles(this.folder, commit, this.fs);
    } catch (error) {
      throw asWriteError(this.folder, error);
    }
    // The result is complete. If removing temporary files fails now, the next run removes them.
    await this.journal?.close().catch(() => {});
    await clearPartial(this.folder, this.fs).catch(() => {});
    await this.leave();
  }

  async abandon(keep = false): Promise<boolean> {
    await this.syncing.catch(() => {});
    for (const shard of this.shards.values()) await shard.abandon();
    this.shards.clear();
    const kept = this.committing || (keep && (await this.isWorthKeeping()));
    await this.journal?.sync().catch(() => {});
    await this.journal?.close().catch(() => {});
    if (!kept) await clearPartial(this.folder, this.fs).catch(() => {});
    await this.leave();
    return kept;
  }

  private async isWorthKeeping(): Promise<boolean> {
    if (this.journal ? !this.journal.empty : this.found) return true;
    const names = await this.fs.readdir(this.partial()).catch(() => [] as string[]);
    return this.journal !== undefined && names.some((name) => name.endsWith(STATE_SUFFIX));
  }

  private async leave(): Promise<void> {
    await this.lock.release().catch(() => {});
    await removeIfEmpty(this.folder, this.fs);
  }
}

const partBytes = (journal: JournalContent | undefined): number =>
  partsOf(journal?.entries ?? []).reduce((sum, { start, end }) => sum + end - start, 0);

/**
 * Throws `UnsafePathError` for a name that leads out of the output folder or to a hidden file of the run. Names may come from
 * another machine or a stranger's folder.
 */
function checkPlain(folder: string, file: string): void {
  if (!isPlainPath(file) || isHidden(file)) throw new UnsafePathError(folder, file);
}
