/**
 * The journal of an output folder: a list of finished work, to which lines are only appended. A line is the CRC-32 of its JSON
 * (eight hexadecimal digits), a space, and the JSON. The first line is the run's identity. An incomplete or damaged line ends
 * the journal: its work counts as unfinished. Entries are checked against the bytes on disk before they are used, so data and
 * journal may reach the disk in any order.
 */
import { crc32 } from 'node:zlib';
import { z } from 'zod';
import { isPlainPath } from '../checkpoint/plain-path.js';
import { type FileSystem, type OpenFile, readWhole, syncFolder, writeAll, writeSynced } from '../file-system.js';
import { listOf } from '../list-of.js';
import { hashedPart } from './manifest.js';

/** The folder, in the output folder, for files that are not complete. */
export const PARTIAL_FOLDER = '.mobe-partial';
/** Files of the run itself are hidden, to tell them from files of the result, which never are. */
export const JOURNAL_FILE = '.journal';

/** The schema of a `PartEntry`. */
export const partEntry = hashedPart.extend({ tensor: z.string() });
/** Bytes of a tensor that were written: their offsets within it, and their hash. */
export type PartEntry = Readonly<z.infer<typeof partEntry>>;

/** Paths are checked because the files that they name are moved and removed, and a folder may come from a stranger. */
const paths = listOf(z.string().refine(isPlainPath)).readonly();

const commit = z.strictObject({ files: paths, last: paths, replaces: paths });
/** The renames that end a run. The entry is written before the first of them. */
export type CommitEntry = Readonly<z.infer<typeof commit>>;

const sentFile = z.strictObject({
  file: z.string().refine(isPlainPath),
  bytes: z.int().nonnegative(),
  sha256: z.string(),
  version: z.string().optional(),
});

/** A shard that is at the place of the result, known by its content. */
export type SentEntry = Readonly<z.infer<typeof sentFile>>;

const journalEntry = z.union([
  z.strictObject({ part: partEntry }),
  /** A shard that was sent away and is not on this disk any more. */
  z.strictObject({ sent: sentFile }),
  /** Files that the result replaces at the place that it is sent to. */
  z.strictObject({ replaces: paths }),
  /** A finished unit and its note. */
  z.strictObject({ done: z.string(), note: z.unknown() }),
  z.strictObject({ commit }),
]);
/** A line of the journal after the first. */
export type JournalEntry = Readonly<z.infer<typeof journalEntry>>;

/** The parts among entries. */
export const partsOf = (entries: readonly JournalEntry[]): PartEntry[] =>
  entries.flatMap((entry) => ('part' in entry ? [entry.part] : []));

/** The content of a journal. */
export interface JournalContent {
  readonly identity: unknown;
  readonly entries: readonly JournalEntry[];
}

const encoder = new TextEncoder();

function encodeLine(value: unknown): Uint8Array {
  const json = JSON.stringify(value);
  return encoder.encode(`${crc32(json).toString(16).padStart(8, '0')} ${json}\n`);
}

function decodeLine(line: string): unknown {
  const json = line.slice(9);
  if (!/^[0-9a-f]{8} /.test(line) || Number.parseInt(line.slice(0, 8), 16) !== crc32(json)) return undefined;
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}

/** The most bytes of a journal that are read: one and a half million lines of about 170 bytes. */
const MAX_JOURNAL_BYTES = 256 * 2 ** 20;

/** Reads a journal. Returns undefined if there is none or its first line is damaged. */
export async function readJournal(path: string, fs: FileSystem): Promise<JournalContent | undefined> {
  const bytes = await readWhole(fs, path, MAX_JOURNAL_BYTES);
  if (!bytes) return undefined;
  const lines = new TextDecoder().decode(bytes).split('\n');
  lines.pop(); // the text after the last newline is empty or an incomplete line
  const [first, ...rest] = lines;
  const identity = first === undefined ? undefined : decodeLine(first);
  if (identity === undefined) return undefined;
  const entries: JournalEntry[] = [];
  for (const line of rest) {
    const { success, data } = journalEntry.safeParse(decodeLine(line));
    if (!success) break;
    entries.push(data);
  }
  return { identity, entries };
}

/** The most bytes of lines that wait while earlier ones are written. */
const MOST_WAITING_BYTES = 64 * 1024;

export class Journal {
  private waiting: Uint8Array[] = [];
  private waitingBytes = 0;
  private failure: unknown;
  /** The last write. Writes wait for each other, so that no line can follow an incomplete one. */
  private tail: Promise<unknown> = Promise.resolve();

  private constructor(
    private readonly file: OpenFile,
    /** The number of entries. */
    private count: number,
  ) {}

  /** Creates a journal with these entries. It replaces an earlier one atomically. */
  static async create(
    folder: string,
    path: string,
    { identity, entries }: JournalContent,
    fs: FileSystem,
  ): Promise<Journal> {
    const temporary = `${path}.new`;
    await writeSynced(fs, temporary, [identity, ...entries].map(encodeLine));
    await fs.rename(temporary, path);
    await syncFolder(folder, fs);
    return new Journal(await fs.open(path, 'a'), entries.length);
  }

  get empty(): boolean {
    return this.count === 0;
  }

  /**
   * Adds an entry. It is on disk after the next `sync`. Lines that come while others are written are written together, because
   * half a million single writes would take minutes. Throws the error of an earlier write.
   */
  async append(entry: JournalEntry): Promise<void> {
    if (this.failure) throw this.failure;
    const line = encodeLine(entry);
    this.count++;
    this.waiting.push(line);
    this.waitingBytes += line.byteLength;
    if (this.waiting.length > 1 && this.waitingBytes < MOST_WAITING_BYTES) return;
    const flushed = this.queue(() => this.flush());
    if (this.waitingBytes >= MOST_WAITING_BYTES) await flushed;
  }

  sync(): Promise<void> {
    return this.queue(async () => {
      await this.flush();
      await this.file.sync();
    });
  }

  async close(): Promise<void> {
    await this.queue(() => this.file.close());
  }

  private async flush(): Promise<void> {
    if (this.failure) throw this.failure;
    const lines = Buffer.concat(this.waiting);
    this.waiting = [];
    this.waitingBytes = 0;
    try {
      await writeAll(this.file, lines, null);
    } catch (error) {
      this.failure = error;
      throw error;
    }
  }

  private queue<T>(action: () => Promise<T>): Promise<T> {
    const result = this.tail.then(action);
    this.tail = result.catch(() => {}); // the caller gets the error from `result`, and later calls from `failure`
    return result;
  }
}
