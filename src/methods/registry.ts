/** The registry of factorisation methods, with one line for each; programs that use the library may register more. */
import type { Method } from './method.js';
import { mobe } from './mobe/mobe.js';
import { quantise } from './quantise/quantise.js';
import { svd } from './svd/svd.js';

const methods = new Map<string, Method>([mobe, svd, quantise].map((method): [string, Method] => [method.name, method]));

/** Methods by their names in `--method` and in records. */
export const METHODS: ReadonlyMap<string, Method> = methods;

/** The default method, which is also that of records without a method. */
export const DEFAULT_METHOD: Method = mobe;

/** The modules of registered methods. Each compute thread registers them anew, since it shares no memory with this one. */
const modules = new Map<string, Method>();

/** The methods that `registerMethod` added. */
export const registeredModules = (): string[] => [...modules.keys()];

/**
 * Imports a module, whose default export is a `Method`, and adds the method to `METHODS`. Compute threads import the same module:
 * a method is code, which cannot be sent to them. A module that was registered before is not registered again. Throws what the
 * import throws, and a `TypeError` where the module has no method or its name is that of another one.
 * @param module e.g. `new URL('./my-method.js', import.meta.url)`
 */
export async function registerMethod(module: URL | string): Promise<Method> {
  const { href } = new URL(module);
  const known = modules.get(href);
  if (known) return known;
  const { default: method } = (await import(href)) as { readonly default?: Method };
  if (typeof method?.name !== 'string' || typeof method.fit !== 'function')
    throw new TypeError(`${href} has no method: export it as its default, "export default {…} satisfies Method<…>"`);
  const other = methods.get(method.name);
  if (other && other !== method) throw new TypeError(`${href}: there is a method "${method.name}" already. Rename it.`);
  methods.set(method.name, method);
  modules.set(href, method);
  return method;
}

/** The method that a record or settings name; undefined if it is unknown. */
export const namedMethod = (name: unknown = DEFAULT_METHOD.name): Method | undefined =>
  [...METHODS.values()].find((method) => method.name === name);

/** The method's entry in a record. The default method has none. */
export const methodRecord = ({ name }: Method): { readonly method?: string } =>
  name === DEFAULT_METHOD.name ? {} : { method: name };

/** The method of a name that was checked before. Throws a `TypeError` if it is not in the registry. */
export function methodNamed(name: string): Method {
  const method = METHODS.get(name);
  if (!method) throw new TypeError(`no method "${name}"`);
  return method;
}
