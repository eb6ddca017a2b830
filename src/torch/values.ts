/**
 * Values that the pickle of a state dict may hold, and the allow-list of globals. The names are from `torch/_utils.py` and
 * `torch/serialization.py` (2.13). No code of torch runs: calling a global only makes a record.
 */
import { PickleNotAllowedError } from '../errors.js';

/** Any value of a pickle. */
export type Value = string | number | boolean | Tuple | Dict | Global | StorageRecord | TensorRecord;

/** A Python tuple. */
export interface Tuple {
  readonly kind: 'tuple';
  readonly items: readonly Value[];
}

/** A `dict` or an `OrderedDict`. It is a Map, so a key named `__proto__` is harmless. */
export interface Dict {
  readonly kind: 'dict';
  readonly entries: Map<string, Value>;
}

/** A Python name from the allow-list. */
export interface Global {
  readonly kind: 'global';
  readonly name: string;
}

/** A persistent id: the zip entry `data/<key>` with `numel` elements. `dtype` is a safetensors name. */
export interface StorageRecord {
  readonly kind: 'storage';
  readonly key: string;
  readonly dtype: string;
  readonly numel: number;
}

/** A tensor as in the pickle. Offset and strides count elements. They are not checked yet. */
export interface TensorRecord {
  readonly kind: 'tensor';
  readonly storage: StorageRecord;
  readonly offset: number;
  readonly shape: readonly number[];
  readonly strides: readonly number[];
}

const STORAGE_DTYPES: ReadonlyMap<string, string> = new Map([
  ['torch.DoubleStorage', 'F64'],
  ['torch.FloatStorage', 'F32'],
  ['torch.HalfStorage', 'F16'],
  ['torch.BFloat16Storage', 'BF16'],
  ['torch.LongStorage', 'I64'],
  ['torch.IntStorage', 'I32'],
  ['torch.ShortStorage', 'I16'],
  ['torch.CharStorage', 'I8'],
  ['torch.ByteStorage', 'U8'],
  ['torch.BoolStorage', 'BOOL'],
]);

type Call = (args: readonly Value[]) => Value | undefined;

/** The allowed calls. A call returns undefined if its arguments do not make a plain tensor. */
const CALLS: ReadonlyMap<string, Call> = new Map<string, Call>([
  ['collections.OrderedDict', (args) => (args.length === 0 ? { kind: 'dict', entries: new Map() } : undefined)],
  ['torch._utils._rebuild_tensor_v2', rebuildTensor],
  ['torch._utils._rebuild_parameter', rebuildParameter],
]);

/** A global of the allow-list. Throws a `PickleNotAllowedError` for any other. */
export function allowedGlobal(module: string, name: string, file: string): Global {
  const full = `${module}.${name}`;
  if (!CALLS.has(full) && !STORAGE_DTYPES.has(full))
    throw new PickleNotAllowedError(file, `the global ${JSON.stringify(full)}`);
  return { kind: 'global', name: full };
}

/** The opcode REDUCE: `callable(*args)`. Throws a `PickleNotAllowedError`. */
export function callGlobal(callable: Value, args: Value, file: string): Value {
  const name = isKind(callable, 'global') ? callable.name : describe(callable);
  const result = isKind(args, 'tuple') ? CALLS.get(name)?.(args.items) : undefined;
  if (result === undefined) throw new PickleNotAllowedError(file, `calling ${name} with ${describe(args)}`);
  return result;
}

/** The opcode BINPERSID: `('storage', storage type, key, location, elements)`. Throws a `PickleNotAllowedError`. */
export function storageOf(id: Value, file: string): StorageRecord {
  if (isKind(id, 'tuple') && id.items.length === 5) {
    const [tag, type, key, location, numel] = id.items;
    const dtype = isKind(type, 'global') ? STORAGE_DTYPES.get(type.name) : undefined;
    if (tag === 'storage' && dtype && typeof key === 'string' && typeof location === 'string' && isSize(numel))
      return { kind: 'storage', key, dtype, numel };
  }
  throw new PickleNotAllowedError(file, `the persistent id ${describe(id)}`);
}

/**
 * Arguments: (storage, storage_offset, size, stride, requires_grad, backward_hooks). A seventh argument means that the values
 * must be conjugated or negated after loading, so the tensor is not plain.
 */
function rebuildTensor(args: readonly Value[]): TensorRecord | undefined {
  const [storage, offset, size, stride, requiresGrad, hooks] = args;
  if (args.length !== 6 || !isKind(storage, 'storage') || typeof offset !== 'number') return undefined;
  if (!isNumbers(size) || !isNumbers(stride) || typeof requiresGrad !== 'boolean' || !isEmptyDict(hooks))
    return undefined;
  return { kind: 'tensor', storage, offset, shape: size.items, strides: stride.items };
}

/** (data, requires_grad, backward_hooks) */
function rebuildParameter(args: readonly Value[]): TensorRecord | undefined {
  const [data, requiresGrad, hooks] = args;
  const isPlain = args.length === 3 && typeof requiresGrad === 'boolean' && isEmptyDict(hooks);
  return isPlain && isKind(data, 'tensor') ? data : undefined;
}

type Kind = Extract<Value, { kind: string }>['kind'];

/** Whether a value is of a kind. */
export const isKind = <K extends Kind>(value: Value | undefined, kind: K): value is Extract<Value, { kind: K }> =>
  typeof value === 'object' && value.kind === kind;

const isNumbers = (value: Value | undefined): value is Tuple & { readonly items: readonly number[] } =>
  isKind(value, 'tuple') && value.items.every((item) => typeof item === 'number');

const isEmptyDict = (value: Value | undefined): boolean => isKind(value, 'dict') && value.entries.size === 0;

const isSize = (value: Value | undefined): value is number => typeof value === 'number' && value >= 0;

/** A short description for error messages. It shows one level, because values may be nested to any depth. */
export function describe(value: Value): string {
  if (typeof value !== 'object') return JSON.stringify(value).slice(0, 80);
  if (value.kind === 'global') return value.name;
  if (value.kind !== 'tuple') return `a ${value.kind}`;
  const items = value.items.slice(0, 8).map((item) => (isKind(item, 'tuple') ? '(…)' : describe(item)));
  return `(${items.join(', ')})`;
}
