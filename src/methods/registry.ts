/** The factorisation methods: one line each. */
import type { Method } from './method.js';
import { mobe } from './mobe/mobe.js';

/** By the name that `--method` and records have for them. */
export const METHODS: Readonly<Record<string, Method>> = { mobe };

/** Throws a `TypeError` for a name that is not in the registry: callers have checked it. */
export function methodNamed(name: string): Method {
  const method = METHODS[name];
  if (!method) throw new TypeError(`no method "${name}"`);
  return method;
}
