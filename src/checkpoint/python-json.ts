/**
 * Reads and edits JSON as Python does, because Python writes the configs. Bare `Infinity`, `-Infinity` and `NaN` are numbers
 * (Mamba's `time_step_limit` is [0.0, Infinity]), the last of duplicate keys counts, and a byte order mark may come first.
 */
import { randomUUID } from 'node:crypto';
import { applyEdits, findNodeAtLocation, modify, parseTree } from 'jsonc-parser';
import { overriddenKeys } from './duplicate-key.js';

const BYTE_ORDER_MARK = '\ufeff';

/** Parses a text. Throws a `SyntaxError` if it is not JSON, apart from the exceptions above. */
export function parsePythonJson(text: string): unknown {
  const json = text.startsWith(BYTE_ORDER_MARK) ? text.slice(1) : text;
  try {
    return JSON.parse(json);
  } catch (error) {
    const mark = randomUUID();
    const quoted = quoteConstants(json, mark);
    if (quoted === json) throw error;
    return JSON.parse(quoted, (_, value) =>
      typeof value === 'string' && value.startsWith(mark) ? Number(value.slice(mark.length)) : value,
    );
  }
}

/**
 * Sets entries by their dotted path, or removes those whose value is undefined. The rest of the text stays as it was written.
 * Printing the parsed value would turn 10000.0 into 10000, which a strict loader takes for an integer.
 */
export function editPythonJson(text: string, changes: Readonly<Record<string, unknown>>): string {
  const start = text.startsWith(BYTE_ORDER_MARK) ? BYTE_ORDER_MARK : '';
  const mark = randomUUID();
  const json = quoteConstants(markOverridden(text.slice(start.length), mark), mark);
  const edited = Object.entries(changes).reduce((before, [path, value]) => {
    const keys = path.split('.');
    return edit(value === undefined ? withoutOverridden(before, keys, mark) : before, keys, value);
  }, json);
  const constants = new RegExp(`"${mark}(-?Infinity|NaN)"`, 'g');
  return start + edited.replace(constants, '$1').replaceAll(mark, '');
}

/** Removes the earlier entries of a name. Otherwise the removal of the last one would bring back the one before it. */
function withoutOverridden(json: string, path: readonly string[], mark: string): string {
  const root = parseTree(json);
  const object = root && findNodeAtLocation(root, path.slice(0, -1));
  const members = object?.type === 'object' ? (object.children ?? []) : [];
  const parts: string[] = [];
  let done = 0;
  members.forEach(({ offset, children }, i) => {
    const next = members[i + 1]; // a marked entry is never the last, because a later one overrides it
    if (!next || children?.[0]?.value !== `${mark}${path.at(-1)}`) return;
    parts.push(json.slice(done, offset));
    done = next.offset;
  });
  return parts.join('') + json.slice(done);
}

function edit(text: string, path: readonly string[], value: unknown): string {
  const options = isFormattable(text) ? { formattingOptions: { insertSpaces: true, tabSize: 2, eol: '\n' } } : {};
  return applyEdits(text, modify(text, [...path], value, options));
}

/** jsonc-parser formats the line that it changed. Its time grows with the square of the line's length: 25 s for 100 KB. */
const MAX_FORMATTED_LINE = 10_000;

const isFormattable = (text: string): boolean => text.split('\n').every(({ length }) => length <= MAX_FORMATTED_LINE);

/** Replaces Python's constants outside of strings by strings that begin with the mark. The mark occurs nowhere else. */
function quoteConstants(json: string, mark: string): string {
  const parts: string[] = [];
  let done = 0;
  for (let i = 0; i < json.length; i++) {
    const character = json[i];
    if (character === '"') {
      for (i++; i < json.length && json[i] !== '"'; i++) if (json[i] === '\\') i++;
    } else if (character === 'I' || character === 'N' || character === '-') {
      const constant = CONSTANTS.find((it) => json.startsWith(it, i));
      if (!constant || isKey(json, i + constant.length)) continue;
      parts.push(json.slice(done, i), `"${mark}${constant}"`);
      i += constant.length - 1;
      done = i + 1;
    }
  }
  return parts.length ? parts.join('') + json.slice(done) : json;
}

/** Whether a colon comes next. A constant cannot be a key. */
function isKey(json: string, from: number): boolean {
  let at = from;
  while (at < json.length && ' \t\r\n'.includes(json[at] as string)) at++;
  return json[at] === ':';
}

const CONSTANTS = ['Infinity', '-Infinity', 'NaN'];

/** Puts the mark before every key that a later one of the same object overrides. Then an edit finds the key that counts. */
function markOverridden(json: string, mark: string): string {
  const starts = overriddenKeys(json)
    .map(({ start }) => start + 1)
    .sort((a, b) => a - b);
  return starts.map((at, i) => json.slice(starts[i - 1] ?? 0, at) + mark).join('') + json.slice(starts.at(-1) ?? 0);
}
