/** A folder of factor files as an `Output`. Each group has a file, which is finished by itself and then stays. */
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
import { checkDisk, listOutput, removeIfEmpty } from '../output/folder-checks.js';
import { type FolderLock, lockFolder } from '../output/folder-lock.js';
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
import { type GroupPlan, groupLabel } from './group-plan.js';
import { type FittedGroupReport, REPORT_FILE } from './run-report.js';

/** Options of `FactorFolder.create`. */
export interface FactorFolderOptions {
  /** All groups that the folder must have in the end. */
  readonly groups: readonly GroupPlan[];
  readonly context: FactorContext;
  /** Removes the run's finished files first, and takes over the lock of another machine. */
  readonly force?: boolean | undefined;
  readonly fs?: FileSystem | undefined;
}

/** An unfinished file. It is created at its first write, so that only the files of groups being written are open. */
interface FileUnderWay {
  readonly layout: ShardLayout;
  opening?: Promise<ShardWriter>;
  writer?: ShardWriter;
}

const PARTIAL_SUFFIX = '.partial';

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
  ) {
    this.groups = new Map(groups.map((group) => [factorFileName(group), group]));
  }

  /**
   * Checks the folder and the disk, and locks the folder. Throws `OutputNotEmptyError` if the folder has other files than
   * factors of the same source and settings, and another `InputError` if the disk is too small or another process has the lock.
   */
  static async create(folder: string, options: FactorFolderOptions): Promise<FactorFolder> {
    const { groups, context, force = false, fs = nodeFileSystem } = options;
    await listOutput(folder); // throws if the path is a file
    const lock = await lockFolder(join(folder, PARTIAL_FOLDER), force, fs).catch((error: Error) => {
      throw error instanceof MobeError ? error : new OutputNotWritableError(folder, error.message);
    });
    try {
      const found = await findFactors(folder, { groups, context, force, fs });
      const missing = groups.filter((group) => !found.has(factorFileName(group)));
      await checkDisk(
        folder,
        missing.reduce((sum, group) => sum + factorBytes(group), 0),
        fs,
      );
      return new FactorFolder(folder, context, groups, found, lock, fs);
    } catch (error) {
      await lock.release();
      await removeIfEmpty(folder, fs);
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
    return join(this.folder, `${file}${PARTIAL_SUFFIX}`);
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
    await this.rename(this.partial(file), file);
    await syncFolder(this.folder, this.fs);
    this.finished.push(file);
    for (const { name } of tensors) this.holders.delete(name);
  }

  private async rename(from: string, file: string): Promise<void> {
    try {
      await this.fs.rename(from, join(this.folder, file));
    } catch (error) {
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
    await clearPartial(this.folder, this.fs).catch(() => {});
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
      await clearPartial(this.folder, this.fs).catch(() => {});
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
    await removeIfEmpty(this.folder, this.fs);
  }
}

const factorBytes = (group: GroupPlan): number => factorTensors(group).reduce((sum, { bytes }) => sum + bytes, 0);

const unitId = (groups: ReadonlyMap<string, GroupPlan>, file: string): string =>
  groupLabel(groups.get(file) as GroupPlan);

/**
 * The reports of the groups that already have a file, by file name. Files of other layers stay if they belong to the same fit.
 */
async function findFactors(
  folder: string,
  { groups, context, force, fs }: FactorFolderOptions & { readonly fs: FileSystem },
): Promise<Map<string, FittedGroupReport>> {
  const wanted = new Map(groups.map((group) => [factorFileName(group), group]));
  const held = (await listOutput(folder)) ?? [];
  const own = (name: string): boolean => wanted.has(name) || RECORDS.includes(name);
  const foreign = held.filter((name) => !own(name) && !isFactorFile(name) && !isPartialFactor(name));
  if (foreign.length)
    throw new OutputNotEmptyError(
      folder,
      `holds files of another run or none of mobe's (${foreign.slice(0, 3).join(', ')})`,
      force,
    );
  const found = new Map<string, FittedGroupReport>();
  for (const name of held.filter(isFactorFile)) {
    const group = wanted.get(name);
    if (group && force) continue;
    const { metadata, problem } = await openFactorFile(join(folder, name), new LocalFiles(fs));
    const same = isSameFit(metadata, context) && (!group || JSON.stringify(problem) === JSON.stringify(group.problem));
    if (!same) throw new OutputNotEmptyError(folder, `holds ${name} from another source or other settings`);
    if (group) found.set(name, { ...metadata.report, seconds: 0 });
  }
  // The process that wrote these has ended, because this one has the lock.
  for (const name of held.filter(isPartialFactor)) await fs.remove(join(folder, name));
  if (force) {
    for (const name of held.filter(own)) await fs.remove(join(folder, name));
    await clearPartial(folder, fs);
  }
  return found;
}

const RECORDS: readonly string[] = [REPORT_FILE, ...PAGE_FILES, `${REPORT_FILE}${PARTIAL_SUFFIX}`];

const isPartialFactor = (name: string): boolean =>
  name.endsWith(PARTIAL_SUFFIX) && isFactorFile(name.slice(0, -PARTIAL_SUFFIX.length));

/** Compares source and settings except `layers`: a group's factors do not depend on which other layers were fitted. */
function isSameFit(a: FactorContext, b: FactorContext): boolean {
  const decisive = ({ settings: { layers: _, ...settings } }: FactorContext): string => JSON.stringify(settings);
  return a.sourceFingerprint === b.sourceFingerprint && decisive(a) === decisive(b);
}
