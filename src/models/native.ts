/** What native checkpoints of all methods have in common: numbers of groups in tensor names, and edits to `config.json`. */
import { applyEdits, modify } from 'jsonc-parser';
import type { Projection } from './family.js';

export const SHORT_NAMES = { gate_proj: 'gate', up_proj: 'up', down_proj: 'down' } as const satisfies Record<
  Projection,
  string
>;

/** Part of a layer's experts: all of them are group 0 of 1. */
export interface GroupNumber {
  readonly group: number;
  readonly groups: number;
}

/** Entries of `config.json` that change, by their dotted path; undefined: to be removed. */
export type ConfigChanges = Readonly<Record<string, unknown>>;

/**
 * Applies changes to the text of a config, leaving the rest as it was written: parsing and printing it again would turn
 * 10000.0 into 10000, which a strict loader takes for an integer.
 */
export function editConfig(text: string, changes: ConfigChanges): string {
  const options = isFormattable(text) ? { formattingOptions: { insertSpaces: true, tabSize: 2, eol: '\n' } } : {};
  return Object.entries(changes).reduce(
    (edited, [path, value]) => applyEdits(edited, modify(edited, path.split('.'), value, options)),
    text,
  );
}

/** jsonc-parser formats the line that it changed, in time that grows with the square of its length: 25 s for 100 KB. */
const MAX_FORMATTED_LINE = 10_000;

const isFormattable = (text: string): boolean => text.split('\n').every(({ length }) => length <= MAX_FORMATTED_LINE);
