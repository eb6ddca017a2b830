/** The folder of a record that is being made. Its files lie in a partial folder until all are complete. */
import { join } from 'node:path';
import { MobeError, OutputNotEmptyError, OutputNotWritableError, UnfinishedRunError } from '../errors.js';
import { type FileSystem, writeSynced } from '../file-system.js';
import { clearPartial, moveFiles } from '../output/commit.js';
import { bytesIn, checkDisk, listOutput, removeIfEmpty } from '../output/folder-checks.js';
import { type FolderLock, lockFolder } from '../output/folder-lock.js';
import { PARTIAL_FOLDER } from '../output/journal.js';
import { asWriteError } from '../output/shard-writer.js';
import { openRecord } from './open-record.js';
import { layerFile, PROBES_PREFIX, RECORD_FILE, type RecordFacts, TOKENS_FILE } from './record.js';

const isOwn = (name: string): boolean =>
  name === RECORD_FILE || name === TOKENS_FILE || /^layer-\d+\.safetensors$/.test(name);

/** Short fits that allocations keep with the record. */
const isOfProbes = (name: string): boolean => name.startsWith(PROBES_PREFIX);

/** Options of `RecordFolder.create`. */
export interface RecordFolderOptions {
  readonly facts: RecordFacts;
  /** Bytes that the folder has at most while the record is made. */
  readonly neededBytes: number;
  readonly force: boolean;
  readonly fs: FileSystem;
}

/** The locked folder of an unfinished record. */
export class RecordFolder {
  private constructor(
    readonly folder: string,
    private readonly facts: RecordFacts,
    private readonly lock: FolderLock,
    private readonly fs: FileSystem,
  ) {}

  /**
   * Checks the folder and the disk, and locks the folder. Returns undefined if the same record is already there, whole or but for
   * its last renames, which are then made. Throws an `InputError` if other files or another record are there.
   */
  static async create(folder: string, options: RecordFolderOptions): Promise<RecordFolder | undefined> {
    const { facts, neededBytes, force, fs } = options;
    await checkForeign(folder, force);
    const partial = join(folder, PARTIAL_FOLDER);
    let lock: FolderLock | undefined;
    try {
      lock = await lockFolder(partial, force, fs);
      const opened = new RecordFolder(folder, facts, lock, fs);
      if (force) await clearPartial(folder, fs);
      if (await opened.isThere(force)) {
        await clearPartial(folder, fs);
        await opened.leave();
        return undefined;
      }
      await checkDisk(folder, neededBytes - (await bytesIn(partial, fs)), fs);
      return opened;
    } catch (error) {
      await lock?.release();
      await removeIfEmpty(folder, fs);
      if (error instanceof MobeError) throw error;
      throw new OutputNotWritableError(folder, (error as Error).message);
    }
  }

  /** The folder for the files of the record and of the unfinished pass. */
  get workspace(): string {
    return join(this.folder, PARTIAL_FOLDER);
  }

  private async isThere(force: boolean): Promise<boolean> {
    if (force) return false;
    const pending = await this.factsIn(this.workspace);
    if (pending) {
      if (!isSame(pending, this.facts)) throw new UnfinishedRunError(this.folder, 'it is of another text or model');
      await this.move();
      return true;
    }
    const held = ((await listOutput(this.folder)) ?? []).filter(isOwn);
    if (held.length === 0) return false;
    const found = await this.factsIn(this.folder);
    if (found && isSame(found, this.facts)) return true;
    throw new OutputNotEmptyError(this.folder, 'holds a record of another model, of other text, or an incomplete one');
  }

  private async factsIn(folder: string): Promise<RecordFacts | undefined> {
    if (!(await this.fs.readdir(folder)).includes(RECORD_FILE)) return undefined;
    const record = await openRecord(folder, { fs: this.fs });
    return record.facts;
  }

  /** Completes the record. Its layers and tokens lie in the workspace. */
  async commit(): Promise<void> {
    try {
      const path = join(this.workspace, RECORD_FILE);
      // Its name in the workspace says that all is there, so it appears only when it is whole.
      await writeSynced(this.fs, `${path}.new`, [new TextEncoder().encode(`${JSON.stringify(this.facts, null, 2)}\n`)]);
      await this.fs.rename(`${path}.new`, path);
      await this.move();
    } catch (error) {
      throw asWriteError(this.folder, error);
    }
    await clearPartial(this.folder, this.fs).catch(() => {});
    await this.leave();
  }

  private async move(): Promise<void> {
    const files = [TOKENS_FILE, ...this.facts.layers.map(layerFile), RECORD_FILE];
    const replaces = ((await listOutput(this.folder)) ?? []).filter(isOwn);
    await moveFiles(this.folder, { files, last: [RECORD_FILE], replaces }, this.fs);
  }

  /** Ends without a record. `keep` leaves the work for the same command. */
  async abandon(keep: boolean): Promise<void> {
    if (!keep) await clearPartial(this.folder, this.fs).catch(() => {});
    await this.leave();
  }

  private async leave(): Promise<void> {
    await this.lock.release().catch(() => {});
    await removeIfEmpty(this.folder, this.fs);
  }
}

async function checkForeign(folder: string, force: boolean): Promise<void> {
  const foreign = ((await listOutput(folder)) ?? []).filter((name) => !isOwn(name) && !isOfProbes(name));
  if (foreign.length)
    throw new OutputNotEmptyError(
      folder,
      `holds other files than a record's (${foreign.slice(0, 3).join(', ')})`,
      force,
    );
}

/** Whether two records are of the same source and tokens. Other facts, for example the engine, may differ. */
function isSame(a: RecordFacts, b: RecordFacts): boolean {
  const decisive = ({ sourceFingerprint, sequences, length, seed, texts, fromModel, layers }: RecordFacts): string =>
    JSON.stringify({
      ...{ sourceFingerprint, sequences, length, seed, fromModel, layers },
      texts: texts.map(({ sha256, bytes }) => ({ sha256, bytes })),
    });
  return decisive(a) === decisive(b);
}
