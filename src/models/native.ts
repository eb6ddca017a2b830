/** Common parts of the native checkpoints of all methods: group numbers in tensor names, and changes to `config.json`. */
import { applyEdits, modify } from 'jsonc-parser';
import type { Projection } from './family.js';

export const SHORT_NAMES = { gate_proj: 'gate', up_proj: 'up', down_proj: 'down' } as const satisfies Record<
  Projection,
  string
>;

/** The number of a group, and the number of groups of its layer and projection. All experts together are group 0 of 1. */
export interface GroupNumber {
  readonly group: number;
  readonly groups: number;
}

/** Changes to `config.json`, by the dotted path of the entry. Undefined removes an entry. */
export type ConfigChanges = Readonly<Record<string, unknown>>;

/**
 * Applies changes to the text of a config and leaves the rest of the text unchanged. Parsing and printing it again would turn
 * 10000.0 into 10000, which a strict loader takes for an integer.
 */
export function editConfig(text: string, changes: ConfigChanges): string {
  const options = isFormattable(text) ? { formattingOptions: { insertSpaces: true, tabSize: 2, eol: '\n' } } : {};
  return Object.entries(changes).reduce(
    (edited, [path, value]) => applyEdits(edited, modify(edited, path.split('.'), value, options)),
    text,
  );
}

/**
 * The longest line that is formatted. jsonc-parser formats the changed line in time quadratic in its length: 25 s for 100 KB.
 */
const MAX_FORMATTED_LINE = 10_000;

const isFormattable = (text: string): boolean => text.split('\n').every(({ length }) => length <= MAX_FORMATTED_LINE);
