/** Reads the texts of a record, and turns them into tokens. */
import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { InterruptedError, OptionError } from '../errors.js';
import { type FileSystem, readWhole } from '../file-system.js';
import type { Tokenizer } from '../inference/tokenizer.js';
import type { RecordFacts } from './record.js';

/** Texts and their tokens are held in memory, with some 40 bytes for each byte of text. */
const MAX_TEXT_BYTES = 64 * 2 ** 20;

/** A text is given to the tokenizer in parts of this size, cut after a line, so that a run can be stopped in between. */
const PART_LENGTH = 2 ** 18;

/** The tokens of a text, and its entry in the record. */
export interface TextTokens {
  readonly tokens: number[];
  readonly entry: RecordFacts['texts'][number];
}

/** Reads a file of UTF-8 text. Throws `OptionError` if it cannot be read. */
export async function readTextTokens(
  file: string,
  { tokenizer, fs, signal }: { tokenizer: Tokenizer; fs: FileSystem; signal?: AbortSignal | undefined },
): Promise<TextTokens> {
  const bytes = await readText(file, fs);
  const tokens: number[] = [];
  for (const part of partsOf(decode(file, bytes))) {
    await setImmediate();
    if (signal?.aborted) throw new InterruptedError();
    for (const token of tokenizer.encode(part, false)) tokens.push(token);
  }
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  return { tokens, entry: { name: basename(file), bytes: bytes.byteLength, sha256 } };
}

async function readText(file: string, fs: FileSystem): Promise<Uint8Array> {
  try {
    const { size } = await fs.stat(file);
    if (size > MAX_TEXT_BYTES)
      throw new OptionError('--text', `${file} has ${size} bytes, more than is needed; give at most ${MAX_TEXT_BYTES}`);
    const bytes = await readWhole(fs, file, MAX_TEXT_BYTES);
    if (bytes) return bytes;
    throw new Error('it changed while it was read');
  } catch (error) {
    if (error instanceof OptionError) throw error;
    throw new OptionError('--text', `${file} cannot be read: ${(error as Error).message}`);
  }
}

function decode(file: string, bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new OptionError('--text', `${file} is not UTF-8`);
  }
}

function* partsOf(text: string): Iterable<string> {
  for (let start = 0; start < text.length; ) {
    const line = start + PART_LENGTH < text.length ? text.indexOf('\n', start + PART_LENGTH) : -1;
    const end = line < 0 ? text.length : line + 1;
    yield text.slice(start, end);
    start = end;
  }
}
