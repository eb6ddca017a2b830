/**
 * Finds the members of a JSON object in its bytes. `JSON.parse` would first build objects and strings for a whole header or index
 * (about 60 MB for 500 000 tensors). It would also silently keep only the last of two members with the same name.
 */
import { isUtf8 } from 'node:buffer';

/** Bytes from `start` to `end` (exclusive). */
export interface Span {
  readonly start: number;
  readonly end: number;
}

const QUOTE = 0x22;
const COMMA = 0x2c;
const COLON = 0x3a;
const BACKSLASH = 0x5c;
const OPEN_LIST = 0x5b;
const CLOSE_LIST = 0x5d;
const OPEN = 0x7b;
const CLOSE = 0x7d;
const SPACE = 0x20;

const isSpace = (byte: number | undefined): boolean =>
  byte === SPACE || byte === 0x0a || byte === 0x0d || byte === 0x09;

/** The span of all bytes, without a byte order mark. Throws a `SyntaxError` if they are not UTF-8. */
export function wholeText(json: Uint8Array): Span {
  if (!isUtf8(json)) throw new SyntaxError('it is not UTF-8');
  const marked = json[0] === 0xef && json[1] === 0xbb && json[2] === 0xbf;
  return { start: marked ? 3 : 0, end: json.byteLength };
}

/**
 * Visits the members of an object in order. `within` must hold the object and nothing else except white space. Keys and values
 * are not checked here: `parseString`, `parseSpan` or another scan does that. Throws a `SyntaxError`.
 */
export function scanObject(json: Buffer, within: Span, visit: (key: Span, value: Span) => void): void {
  const { end } = within;
  let at = skipSpace(json, within.start, end);
  if (json[at] !== OPEN) throw unexpected(at);
  at = skipSpace(json, at + 1, end);
  if (json[at] === CLOSE) at++;
  else {
    for (;;) {
      const keyEnd = endOfString(json, at, end);
      const key = { start: at, end: keyEnd };
      at = skipSpace(json, keyEnd, end);
      if (json[at] !== COLON) throw unexpected(at);
      const start = skipSpace(json, at + 1, end);
      const valueEnd = endOfValue(json, start, end);
      visit(key, { start, end: valueEnd });
      at = skipSpace(json, valueEnd, end);
      if (at < end && json[at] === CLOSE) {
        at++;
        break;
      }
      if (at >= end || json[at] !== COMMA) throw unexpected(at);
      at = skipSpace(json, at + 1, end);
    }
  }
  if (at > end || skipSpace(json, at, end) !== end) throw unexpected(at);
}

/** The value in a span. Throws a `SyntaxError`. */
export const parseSpan = (json: Buffer, { start, end }: Span): unknown => JSON.parse(json.toString('utf8', start, end));

/** The span of the string that begins at `start`. Throws a `SyntaxError` if there is no string. */
export const stringAt = (json: Buffer, start: number): Span => ({
  start,
  end: endOfString(json, start, json.byteLength),
});

/** The string in a span that begins and ends with a quote, with its escapes decoded. Throws a `SyntaxError`. */
export function parseString(json: Buffer, { start, end }: Span): string {
  for (let i = start + 1; i < end - 1; i++) {
    const byte = json[i] as number;
    if (byte < SPACE) throw unexpected(i);
    if (byte === BACKSLASH || byte > 0x7f) return parseSpan(json, { start, end }) as string;
  }
  return json.toString('latin1', start + 1, end - 1); // a new string: a slice of the text would keep all of it in memory
}

function skipSpace(json: Uint8Array, from: number, end: number): number {
  let at = from;
  while (at < end && isSpace(json[at])) at++;
  return at;
}

function endOfString(json: Uint8Array, start: number, end: number): number {
  if (start >= end || json[start] !== QUOTE) throw unexpected(start);
  for (let i = start + 1; i < end; i++) {
    const byte = json[i];
    if (byte === QUOTE) return i + 1;
    if (byte === BACKSLASH) i++;
  }
  throw new SyntaxError('it ends inside a string');
}

/** The end of the value that begins at `start`. The value itself is not checked. */
function endOfValue(json: Uint8Array, start: number, end: number): number {
  if (json[start] === QUOTE) return endOfString(json, start, end);
  let depth = 0;
  for (let i = start; i < end; i++) {
    const byte = json[i];
    if (byte === QUOTE) i = endOfString(json, i, end) - 1;
    else if (byte === OPEN || byte === OPEN_LIST) depth++;
    else if (byte === CLOSE || byte === CLOSE_LIST) {
      if (depth === 0) return i; // the bracket closes the enclosing object
      if (--depth === 0) return i + 1;
    } else if (depth === 0 && (byte === COMMA || isSpace(byte))) return i;
  }
  throw new SyntaxError('it ends inside a value');
}

const unexpected = (at: number): SyntaxError => new SyntaxError(`byte ${at} is not what can stand there`);
