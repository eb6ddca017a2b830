import { describe, expect, test } from 'vitest';
import { bytes, pickleOf } from '../../fixtures/torch-zip.js';
import { PickleNotAllowedError, TorchFileError } from '../errors.js';
import { MAX_OPCODES, MAX_STACK, readPickle } from './pickle.js';
import type { Dict, Value } from './values.js';

const FILE = 'state.pth';
const read = (opcodes: string): Value => readPickle(bytes(`\x80\x02${opcodes}`), FILE);
function failureOf(opcodes: string): unknown {
  try {
    return read(opcodes);
  } catch (error) {
    return error;
  }
}
/** The persistent id of a storage of one element. */
const STORAGE = '(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuK\x01t';
const tuple = (...items: Value[]): Value => ({ kind: 'tuple', items });
const dict = (...entries: Array<[string, Value]>): Value => ({ kind: 'dict', entries: new Map(entries) });

describe('opcodes give what Python gives:', () => {
  const cases: Array<[name: string, opcodes: string, value: Value]> = [
    ['BININT1', 'K\xff.', 255],
    ['BININT2', 'M\xff\xff.', 65535],
    ['BININT', 'J\xff\xff\xff\xff.', -1],
    ['LONG1 of nothing', '\x8a\x00.', 0],
    ['LONG1 of one byte', '\x8a\x01\xff.', -1],
    ['LONG1 of five bytes', '\x8a\x05\x00\x00\x00\x00\x01.', 2 ** 32],
    ['LONG1 of eight bytes', '\x8a\x08\xff\xff\xff\xff\xff\xff\x1f\x00.', 2 ** 53 - 1],
    ['NEWTRUE, NEWFALSE, TUPLE2', '\x88\x89\x86.', tuple(true, false)],
    ['BINUNICODE', 'X\x02\x00\x00\x00\xc3\xb6.', 'ö'],
    ['BINUNICODE of a byte order mark', 'X\x03\x00\x00\x00\xef\xbb\xbf.', '\ufeff'],
    ['SHORT_BINUNICODE', '\x8c\x02hi.', 'hi'],
    ['BINUNICODE8', '\x8d\x02\x00\x00\x00\x00\x00\x00\x00hi.', 'hi'],
    ['EMPTY_TUPLE, TUPLE1', ')\x85.', tuple(tuple())],
    ['TUPLE3', 'K\x01K\x02K\x03\x87.', tuple(1, 2, 3)],
    ['TUPLE of marks within marks', '(K\x01(K\x02tt.', tuple(1, tuple(2))],
    ['EMPTY_DICT, SETITEM', '}\x8c\x01aK\x01s.', dict(['a', 1])],
    ['SETITEMS, twice', '}(\x8c\x01aK\x01u(\x8c\x01bK\x02\x8c\x01cK\x03u.', dict(['a', 1], ['b', 2], ['c', 3])],
    ['SETITEMS of nothing', '}(u.', dict()],
    ['BINPUT, BINGET', 'K\x07q\x05h\x05\x86.', tuple(7, 7)],
    ['LONG_BINPUT, LONG_BINGET', 'K\x07r\x00\x00\x00\x80j\x00\x00\x00\x80\x86.', tuple(7, 7)],
    ['MEMOIZE counts on', 'K\x07\x94K\x08\x94h\x00\x87.', tuple(7, 8, 7)],
    ['FRAME', '\x95\x02\x00\x00\x00\x00\x00\x00\x00K\x07.', 7],
    ['GLOBAL', 'ctorch\nFloatStorage\n.', { kind: 'global', name: 'torch.FloatStorage' }],
    ['STACK_GLOBAL', '\x8c\x05torch\x8c\x0bHalfStorage\x93.', { kind: 'global', name: 'torch.HalfStorage' }],
    ['REDUCE', 'ccollections\nOrderedDict\n)R.', dict()],
    ['BUILD leaves the dict as it is', '}}\x8c\x09_metadata}sb.', dict()],
  ];
  test.each(cases)('%s', (_, opcodes, value) => expect(read(opcodes)).toEqual(value));

  test('a tensor', () => {
    const storage: Value = { kind: 'storage', key: '0', dtype: 'F32', numel: 6 };
    expect(readPickle(pickleOf([{ name: 'a', numel: 6, offset: 2, shape: [2, 2], strides: [2, 1] }]), FILE)).toEqual(
      dict(['a', { kind: 'tensor', storage, offset: 2, shape: [2, 2], strides: [2, 1] }]),
    );
  });

  test('keys named like members of objects are keys', () => {
    const { entries } = read('}(\x8c\x09__proto__}\x8c\x0bconstructorK\x01u.') as Dict;
    expect([...entries.keys()]).toEqual(['__proto__', 'constructor']);
    expect(({} as Record<string, unknown>).entries).toBeUndefined();
  });

  test('a dict that holds itself is only a value', () => {
    const self = read('}q\x00\x8c\x01ah\x00s.') as Dict;
    expect(self.entries.get('a')).toBe(self);
  });
});

test('the pieces of the tensors refused below make a tensor', () => {
  expect(read(`ctorch._utils\n_rebuild_tensor_v2\n(${STORAGE}QK\x00))\x89}tR.`)).toMatchObject({ kind: 'tensor' });
});

describe('what could do more than hold tensors is refused:', () => {
  const cases: Array<[name: string, what: RegExp, opcodes: string]> = [
    ['a function of the system', /global "posix\.system"/, 'cposix\nsystem\n(\x8c\x04truetR.'],
    ['the same by STACK_GLOBAL', /global "posix\.system"/, '\x8c\x05posix\x8c\x06system\x93.'],
    ['eval', /global "builtins\.eval"/, 'cbuiltins\neval\n.'],
    ['a global that begins like an allowed one', /OrderedDict\.fromkeys/, 'ccollections\nOrderedDict.fromkeys\n.'],
    ['a member of objects as a global', /global "constructor\.name"/, 'cconstructor\nname\n.'],
    ['calling a storage type', /calling torch\.FloatStorage/, 'ctorch\nFloatStorage\n)R.'],
    ['calling text', /calling "eval"/, '\x8c\x04eval)R.'],
    ['calling with what is no tuple', /calling collections\.OrderedDict/, 'ccollections\nOrderedDict\nK\x01R.'],
    ['an OrderedDict of arguments', /calling collections\.OrderedDict/, 'ccollections\nOrderedDict\nK\x01\x85R.'],
    ['a tensor of no storage', /_rebuild_tensor_v2/, 'ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00))\x89}tR.'],
    [
      'a tensor with hooks',
      /_rebuild_tensor_v2/,
      `ctorch._utils\n_rebuild_tensor_v2\n(${STORAGE}QK\x00))\x89}\x8c\x01aK\x01stR.`,
    ],
    ['a parameter of no tensor', /_rebuild_parameter/, 'ctorch._utils\n_rebuild_parameter\nK\x01\x89}\x87R.'],
    ['a persistent id that is no tuple', /persistent id "file"/, '\x8c\x04fileQ.'],
    ['a persistent id of another kind', /persistent id \("module"/, '(\x8c\x06moduleK\x01K\x01K\x01K\x01tQ.'],
    ['a storage by another tag', /persistent id \("stowage"/, `${STORAGE.replace('storage', 'stowage')}Q.`],
    [
      'a storage of an unknown type',
      /persistent id/,
      '(\x8c\x07storageccollections\nOrderedDict\n\x8c\x010\x8c\x03cpuK\x01tQ.',
    ],
    [
      'a storage of negative size',
      /persistent id/,
      '(\x8c\x07storagectorch\nFloatStorage\n\x8c\x010\x8c\x03cpuJ\xff\xff\xff\xfftQ.',
    ],
    ['attributes of a storage', /setting attributes/, 'ctorch\nFloatStorage\n}b.'],
    ['a dict key that is no text', /dict key 1/, '}K\x01K\x02s.'],
    ['NEWOBJ', /opcode 0x81 \(byte 5\)/, ')))\x81.'],
    ['INST', /opcode "i", 0x69/, '(ios\nsystem\n.'],
    ['OBJ', /opcode "o", 0x6f/, '(o.'],
    ['PERSID', /opcode "P", 0x50/, 'Pa\n.'],
    ['EXT1', /opcode 0x82/, '\x82\x01.'],
    ['an opcode that Python does not know either', /opcode 0xff/, '\xff.'],
    ['a second PROTO', /opcode 0x80/, '\x80\x02.'],
  ];
  test.each(cases)('%s', (_, what, opcodes) => {
    expect(() => read(opcodes)).toThrow(PickleNotAllowedError);
    expect(() => read(opcodes)).toThrow(what);
    expect(() => read(opcodes)).toThrow(/^state\.pth: .*nothing in a pickle is executed/);
  });
  test.each([0, 1, 6])('protocol %d', (protocol) => {
    expect(() => readPickle(Uint8Array.of(0x80, protocol, 0x2e), FILE)).toThrow(PickleNotAllowedError);
  });
});

describe('a damaged pickle is refused:', () => {
  const cases: Array<[name: string, reason: RegExp, opcodes: string]> = [
    ['without STOP', /without STOP/, 'K\x01'],
    ['an operand cut off', /ends within an opcode/, 'J\x01'],
    ['text longer than the pickle', /ends within an opcode/, 'X\xff\xff\xff\xffa.'],
    ['text longer than 2^53', /ends within an opcode/, `\x8d${'\xff'.repeat(8)}a.`],
    ['a line without its end', /ends within an opcode/, 'ctorch'],
    ['text that is not UTF-8', /byte 4 that is not UTF-8/, '\x8c\x01\xff.'],
    ['a global that is not UTF-8', /not UTF-8/, 'c\xff\nx\n.'],
    ['a global named by numbers', /names a global/, 'K\x01K\x02\x93.'],
    ['an integer of nine bytes', /beyond 2\^53/, `\x8a\x09${'\x01'.repeat(9)}.`],
    ['an integer of 255 bytes', /beyond 2\^53/, `\x8a\xff${'\x00'.repeat(255)}.`],
    ['an integer beyond 2^53', /beyond 2\^53/, '\x8a\x08\x00\x00\x00\x00\x00\x00\x20\x00.'],
    ['a memo that was not set', /memo 3, which was not set/, 'h\x03.'],
    ['a memo of an empty stack', /empty stack/, 'q\x00.'],
    ['a tuple of more than there is', /empty stack/, 'K\x01\x86.'],
    ['a tuple across a mark', /empty stack/, 'K\x01(\x85t.'],
    ['a tuple without a mark', /mark that is not there/, 'K\x01t.'],
    ['items without a dict', /not a dict/, 'K\x01(\x8c\x01aK\x01u.'],
    ['a key without a value', /not a dict/, '}(\x8c\x01au.'],
    ['a key twice', /"a" twice/, '}\x8c\x01aK\x01s\x8c\x01aK\x02s.'],
    ['nothing at STOP', /0 values/, '.'],
    ['two values at STOP', /2 values/, 'K\x01K\x02.'],
    ['a mark at STOP', /stops with/, 'K\x01(.'],
    ['a stack without end', /more than 4096 values/, 'K\x01'.repeat(MAX_STACK + 1)],
    ['marks without end', /more than 4096 marks/, '('.repeat(MAX_STACK + 1)],
    ['opcodes without end', /more than 4194304 opcodes/, `)${'\x85'.repeat(MAX_OPCODES)}.`],
  ];
  test.each(cases)('%s', (_, reason, opcodes) => {
    const failure = failureOf(opcodes);
    expect(failure).toBeInstanceOf(TorchFileError);
    expect(String(failure)).toMatch(reason);
  });
  test('empty', () => expect(() => readPickle(new Uint8Array(), FILE)).toThrow(TorchFileError));
  test('without a protocol', () => expect(() => readPickle(bytes('}.'), FILE)).toThrow(/protocol/));
});

test('tuples as deep as a pickle goes are read, and named without recursion', () => {
  const depth = 100_000;
  let value = read(`)${'\x85'.repeat(depth)}.`);
  for (let i = 0; i < depth; i++) {
    if (typeof value !== 'object' || value.kind !== 'tuple') break;
    value = value.items[0] as Value;
  }
  expect(value).toEqual(tuple());
  expect(() => read(`)${'\x85'.repeat(depth)}Q.`)).toThrow(/persistent id \(\(…\)\)/);
});
