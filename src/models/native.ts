/** Common parts of the native checkpoints of all methods: group numbers in tensor names, and changes to `config.json`. */
import { editPythonJson } from '../checkpoint/python-json.js';
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
export const editConfig = (text: string, changes: ConfigChanges): string => editPythonJson(text, changes);
