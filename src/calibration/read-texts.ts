/** Reads the texts of a record, and turns them into tokens. */
import { createHash } from 'node:crypto';
import { basename } from 'node:path';
import { setImmediate } from 'node:timers/promises';
import { parseJsonObject } from '../checkpoint/read-json.js';
import { InterruptedError, InvalidJsonError, OptionError } from '../errors.js';
import { type FileSystem, readWhole } from '../file-system.js';
import type { ChatMessage, ChatTemplate } from '../inference/chat-template.js';
import type { Tokenizer } from '../inference/tokenizer.js';
import type { RecordFacts } from './record.js';

/** A text and its tokens are held in memory, with some ten bytes for each byte of text. */
const MAX_TEXT_BYTES = 64 * 2 ** 20;

/**
 * A text is given to the tokenizer in parts of this length, cut after a line. It takes some hundred bytes for each character of a part,
 * and a run can be stopped only between parts.
 */
const PART_LENGTH = 2 ** 15;

/** The tokens of a text, and its entry in the record. */
export interface TextTokens {
  readonly tokens: Int32Array;
  readonly entry: RecordFacts['texts'][number];
}

/** The tools that read texts. */
export interface TextTools {
  readonly tokenizer: Tokenizer;
  /** Opens the model's chat template; undefined if it has none. */
  readonly openTemplate: () => Promise<ChatTemplate | undefined>;
  readonly fs: FileSystem;
  readonly signal?: AbortSignal | undefined;
}

/**
 * Reads a file of UTF-8 text. In one whose name ends in ".jsonl", each line is an object with a `text`, or with `messages` for
 * the chat template; their tokens follow each other. Throws `OptionError` for a file that cannot be read or a line that is
 * neither, with its number.
 */
export async function readTextTokens(
  file: string,
  { tokenizer, openTemplate, fs, signal }: TextTools,
): Promise<TextTokens> {
  const bytes = await readBytes(file, fs);
  const text = decode(file, bytes);
  const parts = /\.jsonl$/i.test(file) ? jsonLines(file, text, openTemplate) : partsOf(text);
  const tokens: Int32Array[] = [];
  for await (const part of parts) {
    await setImmediate();
    if (signal?.aborted) throw new InterruptedError();
    tokens.push(Int32Array.from(tokenizer.encode(part, false)));
  }
  const sha256 = createHash('sha256').update(bytes).digest('hex');
  return { tokens: joined(tokens), entry: { name: basename(file), bytes: bytes.byteLength, sha256 } };
}

function joined(parts: readonly Int32Array[]): Int32Array {
  const all = new Int32Array(parts.reduce((sum, { length }) => sum + length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

async function readBytes(file: string, fs: FileSystem): Promise<Uint8Array> {
  const unreadable = (reason: string): OptionError => new OptionError('--text', `${file} cannot be read: ${reason}`);
  try {
    const { size } = await fs.stat(file);
    if (size > MAX_TEXT_BYTES)
      throw new OptionError('--text', `${file} has ${size} bytes, more than is needed; give at most ${MAX_TEXT_BYTES}`);
    const bytes = await readWhole(fs, file, MAX_TEXT_BYTES);
    if (bytes) return bytes;
    throw unreadable('it changed while it was read');
  } catch (error) {
    if (error instanceof OptionError) throw error;
    throw unreadable((error as Error).message);
  }
}

function decode(file: string, bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
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

async function* jsonLines(file: string, text: string, openTemplate: TextTools['openTemplate']): AsyncIterable<string> {
  let template: ChatTemplate | undefined;
  for (const [i, line] of text.split('\n').entries()) {
    if (line.trim() === '') continue;
    const fail = (reason: string): OptionError => new OptionError('--text', `${file}, line ${i + 1}: ${reason}`);
    const { text: own, messages } = parseLine(line, fail);
    if (typeof own === 'string') {
      yield own;
      continue;
    }
    if (!isConversation(messages)) throw fail('it has neither a "text" nor "messages" with roles');
    template ??= await openTemplate();
    if (!template) throw fail('it has "messages", and the model has no chat template; give lines with a "text"');
    try {
      yield template(messages);
    } catch (error) {
      throw fail(`the model's chat template does not take these messages (${(error as Error).message})`);
    }
  }
}

function parseLine(line: string, fail: (reason: string) => OptionError): Record<string, unknown> {
  try {
    return parseJsonObject(line, '');
  } catch (error) {
    throw error instanceof InvalidJsonError ? fail('it is not a JSON object') : error;
  }
}

const isConversation = (messages: unknown): messages is ChatMessage[] =>
  Array.isArray(messages) &&
  messages.length > 0 &&
  messages.every((it) => typeof it === 'object' && it !== null && typeof it.role === 'string');
