/**
 * What the pickle of a state dict may hold: the allow-list of globals, and what calling one gives here. The names are
 * those of `torch/_utils.py` and `torch/serialization.py` (2.13); nothing of theirs runs, a call only makes a record.
 */
import { PickleNotAllowedError } from '../errors.js';

export type Value = string | number | boolean | Tuple | Dict | Global | StorageRecord | TensorRecord;

export interface Tuple {
  readonly kind: 'tuple';
  readonly items: readonly Value[];
}

/** A `dict` or an `OrderedDict`. A Map: a key named `__proto__` is a key. */
export interface Dict {
  readonly kind: 'dict';
  readonly entries: Map<string, Value>;
}

export interface Global {
  readonly kind: 'global';
  readonly name: string;
}

/** A persistent id: the zip entry `data/<key>`, of `numel` elements. `dtype` is named as in safetensors. */
export interface StorageRecord {
  readonly kind: 'storage';
  readonly key: string;
  readonly dtype: string;
  readonly numel: number;
}

/** Offset and strides in elements, as they are in the pickle: not checked against each other or the storage. */
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

/** A call returns undefined for arguments that make no plain tensor. */
const CALLS: ReadonlyMap<string, Call> = new Map<string, Call>([
  ['collections.OrderedDict', (args) => (args.length === 0 ? { kind: 'dict', entries: new Map() } : undefined)],
  ['torch._utils._rebuild_tensor_v2', rebuildTensor],
  ['torch._utils._rebuild_parameter', rebuildParameter],
]);

export function allowedGlobal(module: string, name: string, file: string): Global {
  const full = `${module}.${name}`;
  if (!CALLS.has(full) && !STORAGE_DTYPES.has(full))
    throw new PickleNotAllowedError(file, `the global ${JSON.stringify(full)}`);
  return { kind: 'global', name: full };
}

/** The pickle's REDUCE: `callable(*args)`. */
export function callGlobal(callable: Value, args: Value, file: string): Value {
  const name = isKind(callable, 'global') ? callable.name : describe(callable);
  const result = isKind(args, 'tuple') ? CALLS.get(name)?.(args.items) : undefined;
  if (result === undefined) throw new PickleNotAllowedError(file, `calling ${name} with ${describe(args)}`);
  return result;
}

/** The pickle's BINPERSID: `('storage', storage type, key, location, elements)`. */
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
 * (storage, storage_offset, size, stride, requires_grad, backward_hooks). A seventh argument says that the values are to
 * be conjugated or negated after loading: not plain.
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

export const isKind = <K extends Kind>(value: Value | undefined, kind: K): value is Extract<Value, { kind: K }> =>
  typeof value === 'object' && value.kind === kind;

const isNumbers = (value: Value | undefined): value is Tuple & { readonly items: readonly number[] } =>
  isKind(value, 'tuple') && value.items.every((item) => typeof item === 'number');

const isEmptyDict = (value: Value | undefined): boolean => isKind(value, 'dict') && value.entries.size === 0;

const isSize = (value: Value | undefined): value is number => typeof value === 'number' && value >= 0;

/** For messages: one level deep, since values nest as deep as a file likes. */
export function describe(value: Value): string {
  if (typeof value !== 'object') return JSON.stringify(value).slice(0, 80);
  if (value.kind === 'global') return value.name;
  if (value.kind !== 'tuple') return `a ${value.kind}`;
  const items = value.items.slice(0, 8).map((item) => (isKind(item, 'tuple') ? '(…)' : describe(item)));
  return `(${items.join(', ')})`;
}
