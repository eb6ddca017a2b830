import { dirname, join } from 'node:path';
import { isHidden, isPlainPath } from '../checkpoint/plain-path.js';
import {
  MobeError,
  OutputNotEmptyError,
  OutputNotWritableError,
  UnfinishedRunError,
  UnsafePathError,
  WriteError,
} from '../errors.js';
import { type FileSystem, nodeFileSystem, writeSynced } from '../file-system.js';
import { clearPartial, moveFiles } from './commit.js';
import { checkDisk, listOutput, removeIfEmpty, removeLink } from './folder-checks.js';
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

export interface OutputFolderOptions {
  /** Bytes the run will write, checked against the free space before anything is created. */
  neededBytes: number;
  /** Files of an earlier run to be removed when the new ones are whole. Anything else there is refused. */
  replaces?: readonly string[];
  /** Undefined: what is not finished cannot be continued. */
  run?: RunIdentity | undefined;
  /** Starts over where an unfinished run is there, and takes the lock of another machine. */
  force?: boolean;
  fs?: FileSystem;
}

/** As often as so much was written it is put on disk, beside what is written next. Twice as much is what a power failure can cost. */
const SYNC_BYTES = 64 * 2 ** 20;

export class OutputFolder implements Output {
  private readonly shards = new Map<string, ShardWriter>();
  private readonly holder = new Map<string, ShardWriter>();
  private readonly files = new Set<string>();
  private journal: Journal | undefined;
  /** Of the finished units that `resume` has found. */
  finishedEntries: readonly JournalEntry[] = [];
  private unsynced = 0;
  /** What is being put on disk. */
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

  /** Checks the folder and the disk, then creates the partial folder and locks it, or opens that of an interrupted run. */
  static async create(folder: string, options: OutputFolderOptions): Promise<OutputFolder> {
    const { neededBytes, replaces = [], run, force = false, fs = nodeFileSystem } = options;
    const checkForeign = async (): Promise<void> => {
      const foreign = (await listOutput(folder))?.filter((name) => !replaces.includes(name));
      if (foreign?.length)
        throw new OutputNotEmptyError(folder, `is not empty (it holds ${foreign.slice(0, 3).join(', ')})`);
    };
    await checkForeign();
    const partial = join(folder, PARTIAL_FOLDER);
    await removeLink(partial);
    const before = force ? undefined : await findUnfinished(folder, fs).catch(() => undefined);
    await checkDisk(folder, neededBytes - partBytes(before), fs);
    let lock: FolderLock | undefined;
    try {
      lock = await lockFolder(partial, force, fs);
      await checkForeign(); // another may have finished since
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
   * Finishes the renames of a run that ended in the middle of them. Where that run is to be thrown away (`force`), nothing is
   * done.
   * @returns files that have their final names without being a whole result
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
      if (!found || !commit) return []; // whoever had the lock has finished it
      if (found.identity !== null) {
        checkSameRun(folder, found, run);
        // The result is whole, and of the source as it was.
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

  /** An interrupted run of this identity was found. */
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

  async resume(
    layouts: readonly ShardLayout[],
    units: readonly Unit[],
    onBytes: (bytes: number) => void,
  ): Promise<FinishedUnits> {
    if (!this.found || !this.run) return new Map();
    const changed = new Set(this.run.changedSources(this.found.identity));
    const valid = units.filter(({ sources = [] }) => !sources.some((it) => changed.has(it)));
    const { shards, finished, entries } = await recoverUnits(
      this.partial(),
      this.found,
      layouts,
      valid,
      this.fs,
      onBytes,
    );
    for (const [file, shard] of shards) this.hold(file, shard);
    this.finishedEntries = entries;
    await this.openJournal({ identity: this.run.identity, entries });
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
    if (this.shards.has(layout.file)) return; // from before the interruption
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

  /** Whether all of a unit was written. */
  covers({ parts }: Unit): boolean {
    return parts.every((it) => this.holder.get(it.tensor)?.covers(it.tensor, it.offset, it.bytes));
  }

  async finish(unit: Unit, note: unknown): Promise<void> {
    await this.pending.until(() => this.covers(unit)); // what is handed over may still be on its way here
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
    this.syncing.catch(() => {}); // told by whoever waits for it, now or next
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
    // What cannot be continued needs no identity: a commit that was begun is finished by any run.
    if (!this.journal) await this.openJournal({ identity: null, entries: [] });
    await this.record({ commit });
    this.committing = true;
    await this.sync();
    try {
      await moveFiles(this.folder, commit, this.fs);
    } catch (error) {
      throw asWriteError(this.folder, error);
    }
    // It is whole. What cannot be tidied up now is by the next run.
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

/** Names may come from another machine or a stranger's folder; none leads out of the output folder, or to what a run keeps for itself. */
function checkPlain(folder: string, file: string): void {
  if (!isPlainPath(file) || isHidden(file)) throw new UnsafePathError(folder, file);
}
