/** The factorisation methods: one line each. */
import type { Method } from './method.js';
import { mobe } from './mobe/mobe.js';
import { svd } from './svd/svd.js';

/** By the name that `--method` and records have for them. */
export const METHODS: Readonly<Record<string, Method>> = { mobe, svd };

/** Records that name no method mean this one. */
export const DEFAULT_METHOD: Method = mobe;

/** The method that a record or a result's settings name; undefined where it is none of these. */
export const namedMethod = (name: unknown = DEFAULT_METHOD.name): Method | undefined =>
  Object.values(METHODS).find((method) => method.name === name);

/** As a record keeps it: nothing where it is the default. */
export const methodRecord = ({ name }: Method): { readonly method?: string } =>
  name === DEFAULT_METHOD.name ? {} : { method: name };

/** Throws a `TypeError` for a name that is not in the registry: callers have checked it. */
export function methodNamed(name: string): Method {
  const method = METHODS[name];
  if (!method) throw new TypeError(`no method "${name}"`);
  return method;
}
