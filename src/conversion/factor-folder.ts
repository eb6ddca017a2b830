/** A folder of factor files as an `Output`. Each group has a file, which is finished by itself and then stays. */
import { randomBytes } from 'node:crypto';
import { dirname, join } from 'node:path';
import { encodeHeader } from '../checkpoint/header.js';
import { isHidden, isPlainPath } from '../checkpoint/plain-path.js';
import { PAGE_FILES } from '../checkpoint/side-files.js';
import {
  IncompleteOutputError,
  InterruptedError,
  MobeError,
  OutputNotEmptyError,
  OutputNotWritableError,
  UnsafePathError,
  WriteError,
} from '../errors.js';
import { type FileSystem, nodeFileSystem, syncFolder, writeSynced } from '../file-system.js';
import { clearPartial } from '../output/commit.js';
import { checkDisk, listOutput, removeIfEmpty, removeLink } from '../output/folder-checks.js';
import { checkUnlocked, type FolderLock, lockFolder } from '../output/folder-lock.js';
import { PARTIAL_FOLDER } from '../output/journal.js';
import type { ShardLayout } from '../output/layout.js';
import type { Output } from '../output/output.js';
import { PendingUnits } from '../output/pending-units.js';
import { asWriteError, ShardWriter } from '../output/shard-writer.js';
import { type FinishedUnits, STATE_SUFFIX, type Unit } from '../output/unfinished-run.js';
import { LocalFiles } from '../sources/files.js';
import {
  encodeFactorMetadata,
  type FactorContext,
  factorFileName,
  factorTensors,
  isFactorFile,
  openFactorFile,
} from './factor-files.js';
import { isSlicesFile } from './fit-slices.js';
import { type GroupPlan, groupLabel } from './group-plan.js';
import { type FittedGroupReport, REPORT_FILE } from './run-report.js';

/** Options of `FactorFolder.create`. */
export interface FactorFolderOptions {
  /** All groups that the folder must have in the end. */
  readonly groups: readonly GroupPlan[];
  readonly context: FactorContext;
  /** Removes the run's finished files first, and takes over the lock of another machine. */
  readonly force?: boolean | undefined;
  /**
   * Whether other processes may write into the folder at the same time: other groups, or the same ones if one was taken for dead. There
   * is no lock then, files and states under way have names of this process, and nothing is removed that may be another's.
   */
  readonly shared?: boolean | undefined;
  readonly fs?: FileSystem | undefined;
}

/** An unfinished file. It is created at its first write, so that only the files of groups being written are open. */
interface FileUnderWay {
  readonly layout: ShardLayout;
  opening?: Promise<ShardWriter>;
  writer?: ShardWriter;
}

const PARTIAL_SUFFIX = '.partial';

const NO_LOCK: FolderLock = { release: async () => {} };

/**
 * An `Output` of factor files. Its shards are those of `factorLayout`. Its units are groups, named by their labels. The note of
 * a unit is its `FittedGroupReport`, which goes into the file. `finish` gives a file its final name. `abandon(true)` keeps
 * finished files, `abandon(false)` removes those that this run has finished. Files of earlier runs always stay.
 */
export class FactorFolder implements Output {
  private readonly groups: ReadonlyMap<string, GroupPlan>;
  /** Unfinished files by the names of their tensors. */
  private readonly holders = new Map<string, FileUnderWay>();
  private readonly pending = new PendingUnits();
  /** Files that this run has finished. */
  private readonly finished: string[] = [];
  /** Resolves when all files that are being finished have their final names. */
  private sealing: Promise<unknown> = Promise.resolve();
  /** Whether the output was abandoned, so that no more files are created. */
  private over = false;
  /** Small files, which get their final names in `commit`. */
  private readonly staged = new Set<string>();

  private constructor(
    readonly folder: string,
    private readonly context: FactorContext,
    groups: readonly GroupPlan[],
    /** The reports of finished files from earlier runs, by file name. */
    private readonly found: ReadonlyMap<string, FittedGroupReport>,
    private readonly lock: FolderLock,
    private readonly fs: FileSystem,
    /** A name of this process; undefined if the folder is not shared. */
    readonly writer: string | undefined,
  ) {
    this.groups = new Map(groups.map((group) => [factorFileName(group), group]));
  }

  /**
   * Checks the folder and the disk, and locks the folder. Throws `OutputNotEmptyError` if the folder has other files than
   * factors of the same source and settings, and another `InputError` if the disk is too small or another process has the lock.
   */
  static async create(folder: string, options: FactorFolderOptions): Promise<FactorFolder> {
    const { groups, context, force = false, shared = false, fs = nodeFileSystem } = options;
    await listOutput(folder); // throws if the path is a file
    const take = shared ? joinFolder : lockFolder;
    const lock = await take(join(folder, PARTIAL_FOLDER), force, fs).catch((error: Error) => {
      throw error instanceof MobeError ? error : new OutputNotWritableError(folder, error.message);
    });
    try {
      const found = await findFactors(folder, { groups, context, force, shared, fs });
      const missing = groups.filter((group) => !found.has(factorFileName(group)));
      await checkDisk(
        folder,
        missing.reduce((sum, group) => sum + factorBytes(group), 0),
        fs,
      );
      const writer = shared ? randomBytes(6).toString('hex') : undefined;
      return new FactorFolder(folder, context, groups, found, lock, fs, writer);
    } catch (error) {
      await lock.release();
      if (!shared) await removeIfEmpty(folder, fs);
      throw error;
    }
  }

  get workspace(): string {
    return join(this.folder, PARTIAL_FOLDER);
  }

  /** Whether every group of the run already has its file. */
  get complete(): boolean {
    return this.found.size === this.groups.size;
  }

  async resume(_layouts: readonly ShardLayout[], units: readonly Unit[]): Promise<FinishedUnits> {
    const reports = new Map([...this.found].map(([file, report]) => [unitId(this.groups, file), report]));
    return new Map(units.flatMap(({ id }) => (reports.has(id) ? [[id, reports.get(id)] as const] : [])));
  }

  async reserve(layout: ShardLayout): Promise<void> {
    if (!this.groups.has(layout.file)) throw new WriteError(this.folder, `${layout.file} is of no group of this run`);
    if (this.found.has(layout.file)) return;
    const file: FileUnderWay = { layout };
    for (const { name } of layout.tensors) this.holders.set(name, file);
  }

  async write(tensor: string, offset: number, data: Uint8Array): Promise<void> {
    if (this.over) throw new InterruptedError();
    const file = this.holder(tensor);
    file.opening ??= this.open(file);
    const writer = await file.opening;
    await writer.write(tensor, offset, data);
    this.pending.check();
  }

  private async open(file: FileUnderWay): Promise<ShardWriter> {
    const path = this.partial(file.layout.file);
    await this.fs.remove(path);
    file.writer = await ShardWriter.create(path, file.layout, this.fs);
    return file.writer;
  }

  private holder(tensor: string): FileUnderWay {
    const file = this.holders.get(tensor);
    if (!file) throw new WriteError(this.folder, `no room is reserved for "${tensor}"`);
    return file;
  }

  private partial(file: string): string {
    const { writer } = this;
    return join(this.folder, `${file}${writer === undefined ? '' : `.${writer}`}${PARTIAL_SUFFIX}`);
  }

  async finish({ parts }: Unit, note: unknown): Promise<void> {
    const files = new Set(parts.map(({ tensor }) => this.holder(tensor)));
    await this.pending.until(() =>
      parts.every(({ tensor, offset, bytes }) => this.holders.get(tensor)?.writer?.covers(tensor, offset, bytes)),
    );
    if (this.over) throw new InterruptedError();
    const sealing = [...files].map((file) =>
      this.seal(file.layout, file.writer as ShardWriter, note as FittedGroupReport),
    );
    this.sealing = Promise.allSettled([this.sealing, ...sealing]);
    await Promise.all(sealing);
  }

  private async seal({ file, header, tensors }: ShardLayout, writer: ShardWriter, report: FittedGroupReport) {
    const group = this.groups.get(file) as GroupPlan;
    const { seconds: _, ...reproducible } = report;
    const metadata = encodeFactorMetadata(group, { ...this.context, report: reproducible });
    await writer.rewriteHeader(encodeHeader(factorTensors(group), metadata, header.byteLength));
    await writer.finish();
    // A process that was taken for dead may have finished the same group. The first of its files stays.
    if (this.writer !== undefined && (await this.holds(file))) await this.fs.remove(this.partial(file));
    else await this.rename(this.partial(file), file);
    await syncFolder(this.folder, this.fs);
    this.finished.push(file);
    if (this.writer !== undefined) await this.removeOthers(file);
    for (const { name } of tensors) this.holders.delete(name);
  }

  private holds(file: string): Promise<boolean> {
    return this.fs.stat(join(this.folder, file)).then(
      () => true,
      () => false,
    );
  }

  /** Removes what killed processes left of a file that is finished now. */
  private async removeOthers(file: string): Promise<void> {
    for (const name of await this.fs.readdir(this.folder))
      if (isPartialFactor(name) && name.startsWith(`${file}.`)) await this.fs.remove(join(this.folder, name));
  }

  private async rename(from: string, file: string): Promise<void> {
    try {
      await this.fs.rename(from, join(this.folder, file));
    } catch (error) {
      if (this.writer !== undefined && (await this.holds(file))) return; // another process was faster, and removed `from`
      throw asWriteError(join(this.folder, file), error);
    }
  }

  async sync(): Promise<void> {
    for (const { writer } of new Set(this.holders.values())) await writer?.sync();
  }

  async writeText(file: string, text: string): Promise<void> {
    await this.stage(file, [new TextEncoder().encode(text)]);
  }

  async writeFile(file: string, _bytes: number, content: AsyncIterable<Uint8Array>): Promise<void> {
    await this.stage(file, content);
  }

  private async stage(file: string, content: Iterable<Uint8Array> | AsyncIterable<Uint8Array>): Promise<void> {
    if (this.writer !== undefined) return; // a record is of all groups, and this process has some of them
    if (!isPlainPath(file) || isHidden(file)) throw new UnsafePathError(this.folder, file);
    const path = join(this.workspace, file);
    try {
      await this.fs.mkdir(dirname(path));
      await writeSynced(this.fs, path, content);
    } catch (error) {
      throw error instanceof MobeError ? error : asWriteError(join(this.folder, file), error);
    }
    this.staged.add(file);
  }

  /** Gives the small files their final names. The factor files already have theirs. */
  async commit(): Promise<void> {
    for (const { layout, writer } of this.holders.values())
      for (const { name, bytes } of layout.tensors)
        throw new IncompleteOutputError(name, writer?.writtenBytes(name) ?? 0, bytes);
    for (const file of this.staged) await this.rename(join(this.workspace, file), file);
    // The result is complete. If removing temporary files fails now, the next run removes them.
    if (this.writer === undefined) await clearPartial(this.folder, this.fs).catch(() => {});
    await this.leave();
  }

  async abandon(keep = false): Promise<boolean> {
    this.over = true;
    await this.sealing;
    for (const { layout, opening } of new Set(this.holders.values())) {
      const writer = await opening?.catch(() => undefined);
      await writer?.abandon();
      if (opening) await this.fs.remove(this.partial(layout.file)).catch(() => {});
    }
    if (!keep) {
      for (const file of this.finished) await this.fs.remove(join(this.folder, file)).catch(() => {});
      if (this.writer === undefined) await clearPartial(this.folder, this.fs).catch(() => {});
    }
    const kept = keep && (await this.holdsWork());
    await this.leave();
    return kept;
  }

  private async holdsWork(): Promise<boolean> {
    const states = await this.fs.readdir(this.workspace).catch(() => []);
    const files = (await listOutput(this.folder)) ?? [];
    return files.some(isFactorFile) || states.some((name) => name.endsWith(STATE_SUFFIX));
  }

  private async leave(): Promise<void> {
    await this.lock.release().catch(() => {});
    if (this.writer === undefined) await removeIfEmpty(this.folder, this.fs);
  }
}

/** Prepares a folder that other processes write to as well. Throws `FolderLockedError` if one has it for itself. */
async function joinFolder(partial: string, force: boolean, fs: FileSystem): Promise<FolderLock> {
  await removeLink(partial);
  await fs.mkdir(partial);
  await checkUnlocked(partial, force, fs);
  return NO_LOCK;
}

const factorBytes = (group: GroupPlan): number => factorTensors(group).reduce((sum, { bytes }) => sum + bytes, 0);

const unitId = (groups: ReadonlyMap<string, GroupPlan>, file: string): string =>
  groupLabel(groups.get(file) as GroupPlan);

/**
 * The reports of the groups that already have a file, by file name. Files of other layers stay if they belong to the same fit.
 */
async function findFactors(
  folder: string,
  { groups, context, force, shared, fs }: FactorFolderOptions & { readonly fs: FileSystem },
): Promise<Map<string, FittedGroupReport>> {
  const wanted = new Map(groups.map((group) => [factorFileName(group), group]));
  const held = (await listOutput(folder)) ?? [];
  const own = (name: string): boolean => wanted.has(name) || (!shared && isRecord(name));
  const foreign = held.filter((name) => !own(name) && !isRecord(name) && !isFactorFile(name) && !isPartialFactor(name));
  if (foreign.length)
    throw new OutputNotEmptyError(
      folder,
      `holds files of another run or none of mobe's (${foreign.slice(0, 3).join(', ')})`,
      force,
    );
  const found = new Map<string, FittedGroupReport>();
  // Another process has compared the files of its own groups. One of them shows whether it is of the same fit.
  const all = held.filter(isFactorFile);
  const compared = shared ? [...all.filter((name) => !wanted.has(name)).slice(0, 1), ...all.filter(own)] : all;
  for (const name of compared) {
    const group = wanted.get(name);
    if (group && force) continue;
    const { metadata, problem } = await openFactorFile(join(folder, name), new LocalFiles(fs));
    const same = isSameFit(metadata, context) && (!group || JSON.stringify(problem) === JSON.stringify(group.problem));
    if (!same) throw new OutputNotEmptyError(folder, `holds ${name} from another source or other settings`);
    if (group) found.set(name, { ...metadata.report, seconds: 0 });
  }
  // The process that wrote these has ended, because this one has the lock.
  if (!shared) for (const name of held.filter(isPartialFactor)) await fs.remove(join(folder, name));
  if (force) {
    for (const name of held.filter(own)) await fs.remove(join(folder, name));
    if (!shared) await clearPartial(folder, fs);
  }
  return found;
}

const RECORDS: readonly string[] = [REPORT_FILE, ...PAGE_FILES, `${REPORT_FILE}${PARTIAL_SUFFIX}`];

const isRecord = (name: string): boolean => RECORDS.includes(name) || isSlicesFile(name);

/** Whether a file is an unfinished factor file, with or without the name of its writer. */
const isPartialFactor = (name: string): boolean => {
  const file = /^(.*?\.safetensors)(?:\.[0-9a-f]+)?\.partial$/.exec(name)?.[1];
  return file !== undefined && isFactorFile(file);
};

/** Compares source and settings except `layers`: a group's factors do not depend on which other layers were fitted. */
function isSameFit(a: FactorContext, b: FactorContext): boolean {
  const decisive = ({ settings: { layers: _, ...settings } }: FactorContext): string => JSON.stringify(settings);
  return a.sourceFingerprint === b.sourceFingerprint && decisive(a) === decisive(b);
}
