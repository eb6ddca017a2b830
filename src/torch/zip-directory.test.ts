import { describe, expect, test } from 'vitest';
import { bytes, type Entry, memorySource, zipOf } from '../../fixtures/torch-zip.js';
import { TorchFileError } from '../errors.js';
import { viewOf } from './byte-source.js';
import { MAX_DIRECTORY_BYTES, MAX_ENTRIES, readZipDirectory } from './zip-directory.js';

const hello = { name: 'a/hello', data: bytes('hello') };
const world = { name: 'a/world', data: bytes('world') };

/** `zipOf([hello, world])` with changes. */
function changed(change: (file: Buffer, view: DataView) => Uint8Array | undefined): Uint8Array {
  const file = Buffer.from(zipOf([hello, world]));
  return change(file, viewOf(file)) ?? file;
}

const END = -22;
const ZIP64_LOCATOR = END - 20;
const ZIP64_END = ZIP64_LOCATOR - 56;

/** Writes into the records at the end of the file. Offsets count from the end. */
const atEnd = (distance: number, field: number, value: number, bytesWritten: 2 | 4 | 8): Uint8Array =>
  changed((file, view) => {
    const at = file.length + distance + field;
    if (bytesWritten === 8) view.setBigUint64(at, BigInt(value), true);
    else if (bytesWritten === 4) view.setUint32(at, value, true);
    else view.setUint16(at, value, true);
    return undefined;
  });

/** `zipOf([hello, world])` with the 32-bit end record alone, whose directory size is wrong by `error` bytes. */
const withoutZip64 = (error = 0): Uint8Array =>
  changed((file) => {
    const end = file.subarray(END);
    end.writeUInt32LE(end.readUInt32LE(12) + error, 12);
    return Buffer.concat([file.subarray(0, ZIP64_END), end]);
  });

const headers = (file: Buffer, signature: string): number => file.indexOf(`PK${signature}`, 0, 'latin1');
const CENTRAL = '\x01\x02';

describe('a malformed archive is refused:', () => {
  const claim = (claims: Entry['claims']): Uint8Array => zipOf([hello, { ...world, ...(claims && { claims }) }]);
  const cases: Array<[name: string, message: RegExp, file: Uint8Array]> = [
    ['empty', /truncated/, new Uint8Array()],
    ['shorter than an end record', /truncated/, bytes('PK\x05\x06')],
    ['an end record with a comment', /truncated/, atEnd(END, 20, 1, 2)],
    ['a zip64 locator that points elsewhere', /zip64 end record/, atEnd(ZIP64_LOCATOR, 8, 40, 8)],
    ['a zip64 locator that points beyond 2^53', /zip64 end record/, atEnd(ZIP64_LOCATOR, 12, 0xffffffff, 4)],
    ['a zip64 end record without its signature', /zip64 end record/, atEnd(ZIP64_END, 0, 0, 4)],
    ['end records of two entry counts', /contradict/, atEnd(END, 10, 3, 2)],
    ['end records of two directory sizes', /contradict/, atEnd(END, 12, 3, 4)],
    ['end records of two directory offsets', /contradict/, atEnd(ZIP64_END, 48, 3, 8)],
    ['a directory that does not reach its end record', /right before its end record/, withoutZip64(-1)],
    ['a directory that reaches into its end record', /right before its end record/, withoutZip64(1)],
    ['fewer entries than it claims', /no entry 3 of 3/, changed((file, view) => void setCount(file, view, 3))],
    ['more entries than it claims', /goes on after its 1/, changed((file, view) => void setCount(file, view, 1))],
    [
      'more entries than the limit',
      /entries, the limit/,
      changed((file, view) => void setCount(file, view, MAX_ENTRIES + 1)),
    ],
    [
      'a directory entry without its signature',
      /no entry 1 of 2/,
      changed((file) => void file.writeUInt8(0, headers(file, CENTRAL))),
    ],
    [
      'a directory entry that is cut off by its name',
      /entry 2 .*cut off/,
      changed((file) => void file.writeUInt16LE(9999, file.lastIndexOf(`PK${CENTRAL}`, undefined, 'latin1') + 28)),
    ],
    ['a name twice', /"a\/hello" appears twice/, zipOf([hello, hello])],
    ['a name that is not UTF-8', /entry 2 is not UTF-8/, zipOf([hello, { ...world, name: 'a/\xff' }])],
    ['a compressed entry', /"a\/world" is compressed/, claim({ method: 8 })],
    ['an encrypted entry', /"a\/world" is encrypted/, claim({ flags: 1 })],
    [
      'a stored entry of two sizes',
      /"a\/hello" is stored, but of two sizes/,
      changed((file) => void file.writeUInt32LE(4, headers(file, CENTRAL) + 20)),
    ],
    ['an entry that reaches into the directory', /"a\/world" reaches beyond/, claim({ size: 200 })],
    ['an entry larger than the file', /"a\/world" reaches beyond/, claim({ size: 1e15 })],
    ['an entry larger than 2^53', /"a\/world" reaches beyond/, claim({ size: 2 ** 63 })],
    ['an entry whose zip64 sizes are cut off', /is stored, but of two sizes/, cutOff()],
    ['an entry whose zip64 size is absent', /"a\/world" reaches beyond/, changed(withoutSizes)],
    ['an entry that overlaps the next', /"a\/world" overlaps/, zipOf([{ ...hello, claims: { size: 6 } }, world])],
    ['two names for the same data', /overlaps/, claim({ offset: 0 })],
    ['a local header beyond the file', /lies beyond/, claim({ offset: 1e6 })],
    ['a local header beyond 4 GB of a small file', /lies beyond/, claim({ offset: 5e9 })],
    ['a local header that is none', /byte 5 is not the local header of zip entry "a\/world"/, alone({ offset: 5 })],
    [
      'a local header without its signature',
      /byte 0 is not the local header of zip entry "a\/hello"/,
      changed((file) => void file.writeUInt8(0)),
    ],
    [
      'a local header of another name',
      /byte 0 is not the local header of zip entry "a\/hello"/,
      changed((file) => void file.write('a/hullo', 30)),
    ],
    [
      'a local header of another method',
      /byte 0 is not the local header of zip entry "a\/hello"/,
      changed((file) => void file.writeUInt16LE(8, 8)),
    ],
  ];
  test.each(cases)('%s', async (_, message, file) => {
    const failure = readZipDirectory(memorySource(file));
    await expect(failure).rejects.toThrow(TorchFileError);
    await expect(failure).rejects.toThrow(message);
  });

  test('a directory larger than the limit, before memory is taken for it', async () => {
    const total = MAX_DIRECTORY_BYTES + 1 + 22;
    const end = Buffer.alloc(22);
    end.write('PK\x05\x06', 'latin1');
    end.writeUInt32LE(MAX_DIRECTORY_BYTES + 1, 12);
    const read = async (_: number, length: number): Promise<Uint8Array> =>
      Buffer.concat([Buffer.alloc(length - end.length), end]);
    await expect(readZipDirectory({ file: 'huge.pth', bytes: total, read })).rejects.toThrow(/bytes, the limit is/);
  });

  function setCount(file: Buffer, view: DataView, count: number): undefined {
    view.setBigUint64(file.length + ZIP64_END + 32, BigInt(count), true);
    view.setUint16(file.length + END + 10, 0xffff, true);
  }

  function alone(claims: Entry['claims']): Uint8Array {
    return zipOf([{ ...world, ...(claims && { claims }) }]);
  }

  /** The zip64 field has one of the two sizes that it should have. */
  function cutOff(): Uint8Array {
    const file = Buffer.from(claim({ size: 5e9 }));
    const at = file.lastIndexOf(`PK${CENTRAL}`, undefined, 'latin1');
    file.writeUInt16LE(8, at + 46 + world.name.length + 2);
    return file;
  }

  function withoutSizes(file: Buffer): undefined {
    const at = file.lastIndexOf(`PK${CENTRAL}`, undefined, 'latin1');
    file.writeUInt32LE(0xffffffff, at + 20);
    file.writeUInt32LE(0xffffffff, at + 24);
  }
});

test('every truncation of an archive is refused', async () => {
  const file = zipOf([hello, world]);
  for (let length = 0; length < file.length; length++) {
    await expect(readZipDirectory(memorySource(file.subarray(0, length)))).rejects.toThrow(TorchFileError);
  }
});

test('data begins behind local headers of any length, and entries may be in any order', async () => {
  const file = zipOf([hello, { name: 'a/none', data: bytes('') }, world]);
  const entries = await readZipDirectory(memorySource(file));
  expect([...entries.keys()]).toEqual(['a/hello', 'a/none', 'a/world']);
  for (const { data, name } of [hello, world]) {
    const entry = entries.get(name);
    expect(entry?.size).toBe(5);
    expect(file.subarray(entry?.dataStart, (entry?.dataStart ?? 0) + 5)).toEqual(data);
  }
});

test('an archive without zip64 records is read', async () => {
  expect([...(await readZipDirectory(memorySource(withoutZip64()))).keys()]).toEqual(['a/hello', 'a/world']);
});

test('an archive of nothing is read', async () => {
  expect(await readZipDirectory(memorySource(zipOf([])))).toEqual(new Map());
});
