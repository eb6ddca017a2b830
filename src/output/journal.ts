/**
 * What an output folder holds for certain, as lines that are only ever appended. A line is eight hexadecimal digits, the
 * CRC-32 of the rest, a space, and JSON; the first is the run's identity. A line that is torn or damaged ends the journal: what
 * it would have said was not finished. Entries are claims, to be checked against the bytes themselves before they are believed,
 * so the order in which data and journal reach the disk does not matter.
 */
import { crc32 } from 'node:zlib';
import { z } from 'zod';
import { isPlainPath } from '../checkpoint/plain-path.js';
import { type FileSystem, type OpenFile, readWhole, syncFolder, writeAll, writeSynced } from '../file-system.js';
import { listOf } from '../list-of.js';
import { hashedPart } from './manifest.js';

/** In the output folder: all that is not whole yet. */
export const PARTIAL_FOLDER = '.mobe-partial';
/** Hidden, as all is that a run keeps for itself there: no file of a result is. */
export const JOURNAL_FILE = '.journal';

/** Bytes of a tensor that were written: offsets within it, and their hash. */
export const partEntry = hashedPart.extend({ tensor: z.string() });
/** A part of a tensor that is written, with its hash. */
export type PartEntry = Readonly<z.infer<typeof partEntry>>;

/** A folder may be a stranger's, and what is named here is moved and removed. */
const paths = listOf(z.string().refine(isPlainPath)).readonly();

/** The renames that end a run, written down before the first of them. */
const commit = z.strictObject({ files: paths, last: paths, replaces: paths });
export type CommitEntry = Readonly<z.infer<typeof commit>>;

const journalEntry = z.union([
  z.strictObject({ part: partEntry }),
  /** A unit of work is finished, and what is to be remembered of it. */
  z.strictObject({ done: z.string(), note: z.unknown() }),
  z.strictObject({ commit }),
]);
/** A line of the journal. */
export type JournalEntry = Readonly<z.infer<typeof journalEntry>>;

export const partsOf = (entries: readonly JournalEntry[]): PartEntry[] =>
  entries.flatMap((entry) => ('part' in entry ? [entry.part] : []));

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

/** A line has some 170 bytes: room for one and a half million. */
const MAX_JOURNAL_BYTES = 256 * 2 ** 20;

/** The journal in a folder; undefined where there is none that can be read. */
export async function readJournal(path: string, fs: FileSystem): Promise<JournalContent | undefined> {
  const bytes = await readWhole(fs, path, MAX_JOURNAL_BYTES);
  if (!bytes) return undefined;
  const lines = new TextDecoder().decode(bytes).split('\n');
  lines.pop(); // after the last newline: nothing, or a line that is torn
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

/** Of lines that wait for those before them. */
const MOST_WAITING_BYTES = 64 * 1024;

export class Journal {
  private waiting: Uint8Array[] = [];
  private waitingBytes = 0;
  private failure: unknown;
  /** Writes wait for each other: a short write must not be followed by another's line. */
  private tail: Promise<unknown> = Promise.resolve();

  private constructor(
    private readonly file: OpenFile,
    /** Entries there are. */
    private count: number,
  ) {}

  /** Replaces what journal there was, at once or not at all. */
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
   * The entry is on its way to the file, and there after the next `sync`. Lines that come while others are written go together: a
   * write for each of half a million tensors would take minutes. Throws what went wrong with earlier ones.
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
    this.tail = result.catch(() => {}); // told by `result`, if anybody waits for it, and by what comes next
    return result;
  }
}
