/** Reads the small files of a checkpoint: text, and JSON as Python writes it. */
import { InvalidJsonError, LfsPointerError } from '../errors.js';
import type { Files } from '../sources/files.js';
import { isDeeperThan } from './json-depth.js';
import { isLfsPointer } from './lfs-pointer.js';
import { parsePythonJson } from './python-json.js';

/** Index files reach 60 MB, and a text can have 2^29 characters. */
const MAX_JSON_BYTES = 256 * 1024 * 1024;

/** Configs have about six levels. The limit protects functions that walk them recursively. */
const MAX_JSON_DEPTH = 64;

/** The methods of `Files` that read whole files. */
export type WholeFiles = Pick<Files, 'size' | 'readRange'>;

/** Reads a whole file. Throws an `InvalidJsonError` if it is larger than any real one, and an `LfsPointerError`. */
export async function readBytes(path: string, files: WholeFiles): Promise<Uint8Array<ArrayBuffer>> {
  const end = await files.size(path);
  if (end > MAX_JSON_BYTES) throw new InvalidJsonError(path, `it has ${end} bytes, the limit is ${MAX_JSON_BYTES}`);
  const bytes = await files.readRange({ file: path, start: 0, end });
  if (isLfsPointer(bytes)) throw new LfsPointerError(path);
  return bytes;
}

/** Reads a whole text file. Its byte order mark is kept. */
export async function readText(path: string, files: Files): Promise<string> {
  return new TextDecoder('utf-8', { ignoreBOM: true }).decode(await readBytes(path, files));
}

/** Reads a JSON object. If a key occurs twice, the last one counts. */
export async function readJsonObject(path: string, files: Files): Promise<Record<string, unknown>> {
  return parseJsonObject(await readText(path, files), path);
}

/** @param path names the text in errors */
export function parseJsonObject(text: string, path: string): Record<string, unknown> {
  const value = parseJson(text, path);
  if (typeof value !== 'object' || value === null || Array.isArray(value))
    throw new InvalidJsonError(path, 'not a JSON object');
  return value as Record<string, unknown>;
}

/** @param path names the text in errors */
export function parseJson(text: string, path: string): unknown {
  if (isDeeperThan(MAX_JSON_DEPTH, text)) throw new InvalidJsonError(path, `it nests deeper than ${MAX_JSON_DEPTH}`);
  try {
    return parsePythonJson(text);
  } catch (error) {
    throw notJson(path, error);
  }
}

/** Turns a `SyntaxError` into an `InvalidJsonError`. Returns any other error unchanged. */
export const notJson = (path: string, error: unknown): unknown =>
  error instanceof SyntaxError ? new InvalidJsonError(path, `not JSON (${error.message})`) : error;
