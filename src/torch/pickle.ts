/**
 * Reads the pickle of a state dict from `torch.save`. It knows the opcodes of protocol 2, and those of protocols 3 to 5 that only
 * encode the same more compactly (CPython, `Lib/pickletools.py`). It has no opcodes for lists, floats or objects, and calls
 * nothing outside the allow-list in `values.ts`. Any other opcode is an error.
 */
import { PickleNotAllowedError, TorchFileError } from '../errors.js';
import { decodeText, viewOf } from './byte-source.js';
import { allowedGlobal, callGlobal, describe, isKind, storageOf, type Value } from './values.js';

/** A tensor takes about 150 bytes. The 91 000 tensors of DeepSeek-V3 take 14 MB. */
export const MAX_PICKLE_BYTES = 32 * 1024 * 1024;

/** A tensor takes about 33 opcodes, so this is enough for 127 000 tensors. It bounds memo, objects and time: each costs an opcode. */
export const MAX_OPCODES = 1 << 22;

/** Pickle sets the items of a dict in batches of 1000, with a key and a value each. Everything else needs little stack. */
export const MAX_STACK = 4096;

/** Bytes of an integer. Python's integers have no limit, but sizes and offsets fit into 8 bytes. */
const MAX_INTEGER_BYTES = 8;

const OP = {
  MARK: 0x28, // (
  EMPTY_TUPLE: 0x29, // )
  STOP: 0x2e, // .
  BININT: 0x4a, // J
  BININT1: 0x4b, // K
  BININT2: 0x4d, // M
  BINPERSID: 0x51, // Q
  REDUCE: 0x52, // R
  BINUNICODE: 0x58, // X
  BUILD: 0x62, // b
  GLOBAL: 0x63, // c
  BINGET: 0x68, // h
  LONG_BINGET: 0x6a, // j
  BINPUT: 0x71, // q
  LONG_BINPUT: 0x72, // r
  SETITEM: 0x73, // s
  TUPLE: 0x74, // t
  SETITEMS: 0x75, // u
  EMPTY_DICT: 0x7d, // }
  PROTO: 0x80,
  TUPLE1: 0x85,
  TUPLE2: 0x86,
  TUPLE3: 0x87,
  NEWTRUE: 0x88,
  NEWFALSE: 0x89,
  LONG1: 0x8a,
  SHORT_BINUNICODE: 0x8c,
  BINUNICODE8: 0x8d,
  STACK_GLOBAL: 0x93,
  MEMOIZE: 0x94,
  FRAME: 0x95,
} as const;

/**
 * The value that a pickle describes. Throws a `PickleNotAllowedError` or a `TorchFileError`.
 * @param file name for error messages
 */
export function readPickle(pickle: Uint8Array, file: string): Value {
  const input = createInput(pickle, file);
  const stack = createStack(file);
  const memo = new Map<number, Value>();

  const remember = (index: number): void => void memo.set(index, stack.top());
  const recall = (index: number): Value => {
    const value = memo.get(index);
    if (value === undefined) throw damaged(file, `reads memo ${index}, which was not set`);
    return value;
  };
  const setItems = (items: readonly Value[]): void => {
    const dict = stack.top();
    if (!isKind(dict, 'dict') || items.length % 2 !== 0) throw damaged(file, 'sets items on what is not a dict');
    for (let i = 0; i < items.length; i += 2) {
      const key = items[i] as Value;
      if (typeof key !== 'string') throw new PickleNotAllowedError(file, `the dict key ${describe(key)}`);
      if (dict.entries.has(key)) throw damaged(file, `sets the key ${describe(key)} twice`);
      dict.entries.set(key, items[i + 1] as Value);
    }
  };

  if (input.uint8() !== OP.PROTO) throw damaged(file, 'does not begin with a protocol: it is not one of torch.save');
  const protocol = input.uint8();
  if (protocol < 2 || protocol > 5) throw new PickleNotAllowedError(file, `pickle protocol ${protocol}`);

  for (let count = 0; count < MAX_OPCODES; count++) {
    const opcode = input.uint8();
    switch (opcode) {
      case OP.FRAME: // It only says how far a stream reader may read ahead.
        input.uint64();
        break;
      case OP.MARK:
        stack.mark();
        break;
      case OP.BININT1:
        stack.push(input.uint8());
        break;
      case OP.BININT2:
        stack.push(input.uint16());
        break;
      case OP.BININT:
        stack.push(input.uint32() | 0);
        break;
      case OP.LONG1:
        stack.push(input.integer(input.uint8()));
        break;
      case OP.NEWTRUE:
        stack.push(true);
        break;
      case OP.NEWFALSE:
        stack.push(false);
        break;
      case OP.SHORT_BINUNICODE:
        stack.push(input.text(input.uint8()));
        break;
      case OP.BINUNICODE:
        stack.push(input.text(input.uint32()));
        break;
      case OP.BINUNICODE8:
        stack.push(input.text(input.uint64()));
        break;
      case OP.EMPTY_TUPLE:
        stack.push({ kind: 'tuple', items: [] });
        break;
      case OP.TUPLE1:
      case OP.TUPLE2:
      case OP.TUPLE3:
        stack.push({ kind: 'tuple', items: stack.pop(opcode - OP.TUPLE1 + 1) });
        break;
      case OP.TUPLE:
        stack.push({ kind: 'tuple', items: stack.popMark() });
        break;
      case OP.EMPTY_DICT:
        stack.push({ kind: 'dict', entries: new Map() });
        break;
      case OP.SETITEM:
        setItems(stack.pop(2));
        break;
      case OP.SETITEMS:
        setItems(stack.popMark());
        break;
      case OP.BINPUT:
        remember(input.uint8());
        break;
      case OP.LONG_BINPUT:
        remember(input.uint32());
        break;
      case OP.MEMOIZE:
        remember(memo.size);
        break;
      case OP.BINGET:
        stack.push(recall(input.uint8()));
        break;
      case OP.LONG_BINGET:
        stack.push(recall(input.uint32()));
        break;
      case OP.GLOBAL:
        stack.push(allowedGlobal(input.line(), input.line(), file));
        break;
      case OP.STACK_GLOBAL: {
        const [module, name] = stack.pop(2);
        if (typeof module !== 'string' || typeof name !== 'string')
          throw damaged(file, 'names a global by what is not text');
        stack.push(allowedGlobal(module, name, file));
        break;
      }
      case OP.BINPERSID:
        stack.push(storageOf(stack.pop(1)[0] as Value, file));
        break;
      case OP.REDUCE: {
        const [callable, args] = stack.pop(2) as [Value, Value];
        stack.push(callGlobal(callable, args, file));
        break;
      }
      case OP.BUILD: // It sets the attribute `_metadata` of a state dict: versions of modules, which tensors do not need.
        stack.pop(1);
        if (!isKind(stack.top(), 'dict')) throw new PickleNotAllowedError(file, 'setting attributes of an object');
        break;
      case OP.STOP:
        return stack.result();
      default: {
        const character = opcode > 0x20 && opcode < 0x7f ? `"${String.fromCharCode(opcode)}", ` : '';
        const hex = opcode.toString(16).padStart(2, '0');
        throw new PickleNotAllowedError(file, `the pickle opcode ${character}0x${hex} (byte ${input.position() - 1})`);
      }
    }
  }
  throw new TorchFileError(file, `its pickle has more than ${MAX_OPCODES} opcodes`, 'Save fewer tensors in one file.');
}

const damaged = (file: string, reason: string): TorchFileError => new TorchFileError(file, `its pickle ${reason}`);

/** Reads operands in order. Throws if the bytes end. */
function createInput(pickle: Uint8Array, file: string) {
  const view = viewOf(pickle);
  let at = 0;
  const advance = (length: number): number => {
    if (length > pickle.byteLength - at) throw damaged(file, `ends within an opcode or without STOP (byte ${at})`);
    at += length;
    return at - length;
  };
  const text = (length: number): string => {
    const start = advance(length);
    const decoded = decodeText(pickle.subarray(start, at));
    if (decoded === undefined) throw damaged(file, `has text at byte ${start} that is not UTF-8`);
    return decoded;
  };
  return {
    position: () => at,
    uint8: () => view.getUint8(advance(1)),
    uint16: () => view.getUint16(advance(2), true),
    uint32: () => view.getUint32(advance(4), true),
    /** It is rounded above 2^53, which no length reaches. */
    uint64: () => Number(view.getBigUint64(advance(8), true)),
    text,
    /** Reads text up to a newline, and the newline. */
    line(): string {
      const end = pickle.indexOf(0x0a, at);
      const line = text((end < 0 ? pickle.byteLength : end) - at);
      advance(1);
      return line;
    },
    /** Reads an integer of `length` bytes in two's complement. */
    integer(length: number): number {
      const start = advance(length);
      let value = 0n;
      for (let i = 0; i < Math.min(length, MAX_INTEGER_BYTES); i++)
        value |= BigInt(pickle[start + i] ?? 0) << BigInt(8 * i);
      const integer = Number(BigInt.asIntN(8 * length, value));
      if (length > MAX_INTEGER_BYTES || !Number.isSafeInteger(integer))
        throw damaged(file, `has an integer at byte ${start} that is beyond 2^53`);
      return integer;
    },
  };
}

/** The stack of values. A mark begins a list of values; `pop` does not cross it. */
function createStack(file: string) {
  const values: Value[] = [];
  const marks: number[] = [];
  const need = (count: number): void => {
    if (values.length - count < (marks.at(-1) ?? 0)) throw damaged(file, 'takes a value from an empty stack');
  };
  return {
    pop(count: number): Value[] {
      need(count);
      return values.splice(values.length - count);
    },
    push(value: Value): void {
      if (values.length >= MAX_STACK) throw damaged(file, `stacks more than ${MAX_STACK} values`);
      values.push(value);
    },
    top(): Value {
      need(1);
      return values[values.length - 1] as Value;
    },
    mark(): void {
      if (marks.length >= MAX_STACK) throw damaged(file, `stacks more than ${MAX_STACK} marks`);
      marks.push(values.length);
    },
    popMark(): Value[] {
      const start = marks.pop();
      if (start === undefined) throw damaged(file, 'takes values up to a mark that is not there');
      return values.splice(start);
    },
    /** The result. At STOP there must be one value and no mark. */
    result(): Value {
      if (marks.length > 0 || values.length !== 1)
        throw damaged(file, `stops with ${values.length} values on its stack`);
      return values[0] as Value;
    },
  };
}
