import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, expect, test } from 'vitest';
import { TORCH_FILES } from '../../fixtures/paths.js';
import { temporaryFolder } from '../../fixtures/temporary-folder.js';
import {
  bytes,
  memorySource,
  type PickledTensor,
  pickleOf,
  torchFileOf,
  writeSparseZip,
  zipOf,
} from '../../fixtures/torch-zip.js';
import { PickleNotAllowedError, TorchFileError, TorchTensorError } from '../errors.js';
import { LocalFiles } from '../sources/files.js';
import { openTorchFile, readTensors } from './open-torch-file.js';
import { MAX_PICKLE_BYTES } from './pickle.js';

interface ExpectedTensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
  readonly bytes: string;
}

const expected = Object.entries(
  JSON.parse(readFileSync(join(TORCH_FILES, 'expected.json'), 'utf8')) as Record<string, ExpectedTensor[] | 'refused'>,
);
const valid = expected.filter((entry): entry is [string, ExpectedTensor[]] => entry[1] !== 'refused');

test.each(valid)('%s: tensors are where torch.load finds them', async (name, tensors) => {
  const path = join(TORCH_FILES, name);
  const reader = new LocalFiles();
  const found: ExpectedTensor[] = [];
  for (const tensor of await openTorchFile(path)) {
    expect(tensor.file).toBe(path);
    const data = await reader.readRange(tensor);
    found.push({ ...tensorFacts(tensor), bytes: Buffer.from(data).toString('hex') });
  }
  await reader.close();
  expect(found).toEqual(tensors);
});

const tensorFacts = ({ name, dtype, shape }: Omit<ExpectedTensor, 'bytes'>) => ({ name, dtype, shape });

describe('what torch writes and is no state dict of plain tensors is refused:', () => {
  const reasons: Record<string, [error: new (...args: never[]) => Error, message: RegExp]> = {
    'transposed.pth': [TorchTensorError, /tensor "turned" has .* not contiguous. Save tensor.contiguous\(\)/],
    'nested.pth': [TorchFileError, /"model" is a dict, not a tensor. Save the state dict alone/],
    'tensor.pth': [TorchFileError, /holds a tensor, not a state dict/],
    'module.pth': [PickleNotAllowedError, /torch\.nn\.modules\.linear\.Linear/],
    'conjugated.pth': [PickleNotAllowedError, /calling torch\._utils\._rebuild_tensor_v2/],
    'float8.pth': [PickleNotAllowedError, /torch\._utils\._rebuild_tensor_v3/],
    'legacy.pth': [TorchFileError, /before torch 1\.6. Load it with torch ≥ 1\.6 and save it again/],
    'legacy-tar.pth': [TorchFileError, /TAR archive.* Load it with torch ≥ 1\.6 and save it again/],
    'compressed.pth': [TorchFileError, /"archive\/data.pkl" is compressed/],
    'malicious.pth': [PickleNotAllowedError, /"posix\.system" is not allowed: .*nothing in a pickle is executed/],
  };
  const refused = expected.filter(([, tensors]) => tensors === 'refused').map(([name]) => name);
  test.each(refused)('%s', async (name) => {
    const failure = openTorchFile(join(TORCH_FILES, name));
    const [error, message] = reasons[name] as (typeof reasons)[string];
    await expect(failure).rejects.toThrow(error);
    await expect(failure).rejects.toThrow(message);
    await expect(failure).rejects.toThrow(name);
  });
  test('every file is one or the other', () => {
    const files = readdirSync(TORCH_FILES).filter((name) => name.endsWith('.pth'));
    expect(files.sort()).toEqual(expected.map(([name]) => name).sort());
  });
});

test('offsets beyond 4 GB are exact, in a file whose storage and directory lie there', async () => {
  const path = join(temporaryFolder(), 'sparse.pth');
  const elements = 2 ** 30 + 16;
  const last = Float32Array.of(1, 2, 3, 4);
  writeSparseZip(path, [
    {
      name: 'sparse/data.pkl',
      data: pickleOf([
        { name: 'large', numel: elements, shape: [elements], strides: [1] },
        { name: 'tail', numel: elements, offset: elements - 16, shape: [4, 4], strides: [4, 1] },
        { name: 'last', key: '1', numel: 4, shape: [2, 2], strides: [2, 1] },
      ]),
    },
    { name: 'sparse/data/0', data: new Uint8Array(), size: elements * 4 },
    { name: 'sparse/data/1', data: new Uint8Array(last.buffer) },
  ]);
  const [large, tail, small] = await openTorchFile(path);
  expect(large && large.end - large.start).toBe(elements * 4);
  expect(tail?.end).toBe(large?.end);
  expect(tail && tail.end - tail.start).toBe(64);
  expect(small?.start).toBeGreaterThan(2 ** 32);
  const reader = new LocalFiles();
  const data = await reader.readRange(small as NonNullable<typeof small>);
  await reader.close();
  expect(new Float32Array(data.buffer)).toEqual(last);
});

describe('a tensor that does not fit its storage is refused, by name:', () => {
  const plain: PickledTensor = { name: 'w', numel: 6, shape: [2, 3], strides: [3, 1] };
  const cases: Array<[name: string, message: RegExp, tensor: PickledTensor]> = [
    ['a negative size', /shape \[-2,3\]/, { ...plain, shape: [-2, 3] }],
    ['two negative sizes', /shape \[-2,-3\]/, { ...plain, shape: [-2, -3] }],
    ['a negative offset', /at offset -1/, { ...plain, offset: -1 }],
    ['more elements than the storage', /needs elements 0 to 9/, { ...plain, shape: [3, 3] }],
    ['an offset that leaves too few', /needs elements 1 to 7/, { ...plain, offset: 1 }],
    [
      'sizes whose product is beyond 2^53',
      /needs elements 0 to/,
      { ...plain, shape: [2 ** 40, 2 ** 40], strides: [2 ** 40, 1] },
    ],
    ['other dimensions than strides', /2 dimensions and 1 strides/, { ...plain, strides: [1] }],
    ['column-major strides', /not contiguous/, { ...plain, strides: [1, 2] }],
    ['a stride of zero', /not contiguous/, { ...plain, strides: [0, 1] }],
    ['a storage that is not there', /data\/7, which is not in the file/, { ...plain, key: '7' }],
    ['a storage named like a path', /data\/\.\.\/data\.pkl, which is not/, { ...plain, key: '../data.pkl' }],
    ['a storage shorter than it says', /of 8 F32 elements, for which the file has 24 bytes/, { ...plain, numel: 8 }],
    ['a storage of another dtype', /of 6 F64 elements/, { ...plain, storage: 'DoubleStorage' }],
    ['a storage beyond 2^53', /elements, for which the file has 24/, { ...plain, numel: 2 ** 53 - 1 }],
  ];
  test('(the plain one is not)', async () => {
    expect(await readTensors(memorySource(torchFileOf(pickleOf([plain]), new Uint8Array(24))))).toHaveLength(1);
  });
  test.each(cases)('%s', async (_, message, tensor) => {
    const failure = readTensors(memorySource(torchFileOf(pickleOf([tensor]), new Uint8Array(24))));
    await expect(failure).rejects.toThrow(TorchTensorError);
    await expect(failure).rejects.toThrow(message);
    await expect(failure).rejects.toThrow(/memory\.pth: tensor "w"/);
  });
});

test('an empty tensor is empty however large its other sizes, and wherever it begins', async () => {
  const sizes = Array.from({ length: 20 }, () => 2 ** 52);
  const strides = [...sizes.map(() => 0), 1];
  const pickle = pickleOf([{ name: 'e', numel: 6, offset: 99, shape: [...sizes, 0], strides }]);
  const [tensor] = await readTensors(memorySource(torchFileOf(pickle, new Uint8Array(24))));
  expect(tensor?.end).toBe(tensor?.start);
});

describe('a file that is not what torch.save writes is refused:', () => {
  const data = pickleOf([]);
  const named = (...names: string[]) => zipOf(names.map((name) => ({ name, data })));
  const cases: Array<[name: string, message: RegExp, file: Uint8Array]> = [
    ['empty', /not a file of torch\.save/, new Uint8Array()],
    ['text', /not a file of torch\.save/, bytes('hello')],
    ['an archive without data.pkl', /no data\.pkl/, named('archive/version')],
    ['an archive with data.pkl at its root', /no data\.pkl/, named('data.pkl')],
    ['an archive with data.pkl deeper down', /no data\.pkl/, named('a/b/data.pkl')],
    ['an archive with two data.pkl', /more than one data\.pkl/, named('a/data.pkl', 'b/data.pkl')],
    [
      'big-endian',
      /byte order is "big"/,
      zipOf([
        { name: 'a/data.pkl', data },
        { name: 'a/byteorder', data: bytes('big') },
      ]),
    ],
    ['an empty pickle', /pickle ends/, torchFileOf(new Uint8Array())],
    ['a tuple', /holds \(\(…\)\), not a state dict/, torchFileOf(bytes('\x80\x02)\x85.'))],
    ['a number among the tensors', /"a" is 1, not a tensor/, torchFileOf(bytes('\x80\x02}\x8c\x01aK\x01s.'))],
  ];
  test.each(cases)('%s', async (_, message, file) => {
    const failure = readTensors(memorySource(file));
    await expect(failure).rejects.toThrow(TorchFileError);
    await expect(failure).rejects.toThrow(message);
  });

  test('a pickle larger than the limit, before it is read', async () => {
    const path = join(temporaryFolder(), 'large-pickle.pth');
    writeSparseZip(path, [{ name: 'a/data.pkl', data: new Uint8Array(), size: MAX_PICKLE_BYTES + 1 }]);
    await expect(openTorchFile(path)).rejects.toThrow(/pickle has 33554433 bytes, the limit is 33554432/);
  });

  test('a path where nothing is', async () => {
    await expect(openTorchFile('/no/such/file.pth')).rejects.toThrow(/no such file/);
  });

  test('a folder', async () => {
    await expect(openTorchFile(TORCH_FILES)).rejects.toThrow(/is not a file/);
  });
});
