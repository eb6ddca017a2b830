/** Common parts of the native checkpoints of all methods: group numbers in tensor names, and changes to `config.json`. */
import { editPythonJson } from '../checkpoint/python-json.js';
import type { Config, Projection } from './family.js';

export const SHORT_NAMES = { gate_proj: 'gate', up_proj: 'up', down_proj: 'down' } as const satisfies Record<
  Projection,
  string
>;

/** The number of a group, and the number of groups of its layer and projection. All experts together are group 0 of 1. */
export interface GroupNumber {
  readonly group: number;
  readonly groups: number;
}

/**
 * The entry of `mobe.factors` in a native config for a layer's projection. Undefined if there is none, as in checkpoints of
 * format_version 1.
 */
export function factorsEntry(
  { mobe }: Config,
  { layer, projection }: { readonly layer: number; readonly projection: Projection },
): Config | undefined {
  const listed = (mobe as Config | undefined)?.factors;
  const holds = (list: unknown, it: unknown): boolean => Array.isArray(list) && list.includes(it);
  return Array.isArray(listed)
    ? listed.find((entry: Config | null) => holds(entry?.layers, layer) && holds(entry?.projections, projection))
    : undefined;
}

/** Changes to `config.json`, by the dotted path of the entry. Undefined removes an entry. */
export type ConfigChanges = Readonly<Record<string, unknown>>;

/**
 * Applies changes to the text of a config and leaves the rest of the text unchanged. Parsing and printing it again would turn
 * 10000.0 into 10000, which a strict loader takes for an integer.
 */
export const editConfig = (text: string, changes: ConfigChanges): string => editPythonJson(text, changes);
