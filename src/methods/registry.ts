/** The registry of factorisation methods, with one line for each. */
import type { Method } from './method.js';
import { mobe } from './mobe/mobe.js';
import { svd } from './svd/svd.js';

/** Methods by their names in `--method` and in records. */
export const METHODS: Readonly<Record<string, Method>> = { mobe, svd };

/** The default method, which is also that of records without a method. */
export const DEFAULT_METHOD: Method = mobe;

/** The method that a record or settings name; undefined if it is unknown. */
export const namedMethod = (name: unknown = DEFAULT_METHOD.name): Method | undefined =>
  Object.values(METHODS).find((method) => method.name === name);

/** The method's entry in a record. The default method has none. */
export const methodRecord = ({ name }: Method): { readonly method?: string } =>
  name === DEFAULT_METHOD.name ? {} : { method: name };

/** The method of a name that was checked before. Throws a `TypeError` if it is not in the registry. */
export function methodNamed(name: string): Method {
  const method = METHODS[name];
  if (!method) throw new TypeError(`no method "${name}"`);
  return method;
}
